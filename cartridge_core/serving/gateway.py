"""The gateway: OpenAI's endpoints, models, health and metrics as one ASGI application."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException

from cartridge_core import __version__
from cartridge_core.errors import (
    CartridgeError,
    CatalogError,
    NotFoundError,
    PublishingError,
    SettingsError,
    StorageError,
)
from cartridge_core.serving.answering import Answerer
from cartridge_core.serving.caller import Caller
from cartridge_core.serving.completions import Completions
from cartridge_core.serving.config import GatewayConfig
from cartridge_core.serving.door import Door
from cartridge_core.serving.engine import Engine
from cartridge_core.serving.errors import BadRequestError, ForbiddenError, ServingError, UnavailableError
from cartridge_core.serving.metrics import Metrics
from cartridge_core.serving.model_list import ModelList
from cartridge_core.serving.openai_types import ChatRequest, CompletionRequest
from cartridge_core.serving.prompt import PromptRenderer, ServedModel
from cartridge_core.serving.remembered import Freshness
from cartridge_core.serving.request_log import InFlight, RequestLog, refuse
from cartridge_core.serving.resolver import Catalogue, Resolver
from cartridge_core.settings import Settings


class Gateway:
    """The parts of one gateway, put together.

    Args:
        settings: Name the stores and the tenant of those who need no key.
        config: How it is run.
        model: Its base model.
        engine: What computes.
    """

    def __init__(self, settings: Settings, config: GatewayConfig, model: ServedModel, engine: Engine) -> None:
        self.settings, self.config, self.model, self.engine = settings, config, model, engine
        self.catalogue = Catalogue(settings)
        freshness = Freshness(config.fresh_s, config.stale_s, config.catalog_timeout_s)
        self.resolver = Resolver(self.catalogue, model.identity, freshness)
        self.door = Door(self.catalogue, settings.tenant, freshness)
        self.renderer = PromptRenderer(model, settings)
        self.metrics = Metrics(engine)
        self.in_flight = InFlight()
        answerer = Answerer(model, self.resolver, self.renderer, engine, config.fallback)
        self.completions = Completions(answerer, self.metrics)
        self.models = ModelList(model, self.resolver)

    async def caller(self, request: Request) -> Caller:
        """Who asks.

        Raises:
            UnauthorizedError: Nobody that may.
        """
        caller = await self.door.caller(request.headers)
        request.state.record.tenant = caller.tenant
        request.state.record.fields["key"] = caller.key_id
        return caller

    async def reader_of_metrics(self, request: Request) -> Caller:
        """Who reads the numbers, which tell of all tenants: with keys, an operator of the gateway's own tenant.

        Raises:
            UnauthorizedError, ForbiddenError: Somebody else.
        """
        caller = await self.caller(request)
        if caller.key_id is not None:
            caller.check_operator()
            if caller.tenant != self.settings.tenant:
                raise ForbiddenError("These numbers are for the gateway's own operators.")
        return caller

    async def close(self) -> None:
        """Give everything back."""
        await self.engine.close()
        self.resolver.close()
        self.door.close()
        self.renderer.close()
        self.catalogue.close()


def create_app(gateway: Gateway) -> FastAPI:
    """The application.

    Args:
        gateway: Its parts; started and closed with the application.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await gateway.engine.start()
        try:
            yield
        finally:
            await gateway.close()

    app = FastAPI(
        title="Cartridge gateway",
        version=__version__,
        summary="OpenAI-compatible answers through Cartridges",
        lifespan=lifespan,
        # The pages load scripts from elsewhere; the schema itself is at /openapi.json.
        docs_url=None,
        redoc_url=None,
    )
    app.add_middleware(
        RequestLog,
        metrics=gateway.metrics,
        in_flight=gateway.in_flight,
        max_body_bytes=gateway.config.max_body_bytes,
    )
    _add_error_handlers(app)
    _add_answers(app, gateway)
    _add_models(app, gateway)
    _add_health(app, gateway)
    return app


_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"description": text}
    for status, text in (
        (400, "The request cannot be answered as it is."),
        (401, "No valid API key."),
        (404, "No such corpus, alias or version."),
        (410, "The Cartridge was retired or erased."),
        (413, "The request is too long."),
        (422, "The Cartridge belongs to another base model."),
        (429, "Too many requests."),
        (500, "The Cartridge is damaged, or the gateway failed."),
        (503, "Something is not available now; Retry-After says when to ask again."),
    )
}


def _add_answers(app: FastAPI, gateway: Gateway) -> None:
    Asking = Annotated[Caller, Depends(gateway.caller)]

    @app.post("/v1/chat/completions", responses=_ERRORS)
    async def chat_completions(request: Request, body: ChatRequest, caller: Asking) -> Response:
        """Answer a conversation, behind the Cartridge that `model` names."""
        return await gateway.completions.chat(request, body, caller)

    @app.post("/v1/completions", responses=_ERRORS)
    async def completions(request: Request, body: CompletionRequest, caller: Asking) -> Response:
        """Continue a text, behind the Cartridge that `model` names."""
        return await gateway.completions.text(request, body, caller)


def _add_models(app: FastAPI, gateway: Gateway) -> None:
    Asking = Annotated[Caller, Depends(gateway.caller)]

    @app.get("/v1/models", responses=_ERRORS)
    async def models(caller: Asking) -> dict[str, Any]:
        """List the base model and every corpus that is served."""
        return {"object": "list", "data": await gateway.models.entries(caller)}

    @app.get("/v1/models/{name:path}", responses=_ERRORS)
    async def model(name: str, caller: Asking) -> dict[str, Any]:
        """Show one model: a corpus, an alias, a version or the base model."""
        return await gateway.models.entry(caller, name)


def _add_health(app: FastAPI, gateway: Gateway) -> None:
    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Say that the process lives."""
        return {"status": "ok"}

    @app.get("/readyz", responses={503: {"description": "It should get no requests now."}})
    async def readyz() -> JSONResponse:
        """Say whether requests should be sent here."""
        health = await gateway.engine.health()
        draining = gateway.in_flight.draining
        ready = health.ready and not draining
        said = {
            "ready": ready,
            "reason": "shutting down" if draining else health.reason,
            "running": health.running,
            "waiting": health.waiting,
        }
        return JSONResponse(said, 200 if ready else 503)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics(caller: Annotated[Caller, Depends(gateway.reader_of_metrics)]) -> Response:
        """Numbers for Prometheus."""
        return Response(await gateway.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


_STATUS: tuple[tuple[type[CartridgeError], int, str], ...] = (
    (NotFoundError, 404, "not_found"),
    (SettingsError, 400, "invalid_value"),
    (PublishingError, 409, "refused"),
    (CatalogError, 503, "catalog_unavailable"),
    (StorageError, 503, "artifact_unavailable"),
)
"""How errors of the library look from outside."""


def _add_error_handlers(app: FastAPI) -> None:
    async def refused(request: Request, error: Any) -> Response:
        return _told(request, error)

    app.add_exception_handler(ServingError, refused)

    async def library(request: Request, error: Any) -> Response:
        for kind, status, code in _STATUS:
            if isinstance(error, kind):
                return _told(request, _plain(error, status, code))
        return _told(request, _plain(error, 500, "internal_error"))

    app.add_exception_handler(CartridgeError, library)

    async def invalid(request: Request, error: Any) -> Response:
        return _told(request, _invalid(error))

    app.add_exception_handler(RequestValidationError, invalid)

    async def http(request: Request, error: Any) -> Response:
        if isinstance(error.__cause__, ServingError):
            # The framework wraps what happens while it reads a body.
            return _told(request, error.__cause__)
        code = {404: "unknown_url", 405: "method_not_allowed"}.get(error.status_code, "invalid_value")
        return _told(request, _plain(CartridgeError(f"{error.detail}."), error.status_code, code), error.headers)

    app.add_exception_handler(HTTPException, http)


def _told(request: Request, error: ServingError, headers: Any = None) -> Response:
    request.state.record.fields["error"] = error.code
    if error.__cause__ is not None and error.status >= 500:
        # The caller gets no paths and addresses; the operator does.
        request.state.record.fields["cause"] = str(error.__cause__)
    response = refuse(error)
    for name, value in (headers or {}).items():
        response.headers[name] = value
    return response


def _plain(error: CartridgeError, status: int, code: str) -> ServingError:
    kind = BadRequestError if status < 500 else UnavailableError if status == 503 else ServingError
    made = kind(error.problem, error.remedy, code=code)
    made.status = status  # type: ignore[misc]  # of this one instance
    return made


def _invalid(error: RequestValidationError) -> BadRequestError:
    """The first thing that is wrong, in the words that OpenAI has for it."""
    errors = error.errors()
    # Of a field that may have several types each one complains; the deepest complaint knows best what was meant.
    first = max((e for e in errors if e["loc"][:2] == errors[0]["loc"][:2]), key=lambda e: len(e["loc"]))
    place = [str(part) for part in first["loc"] if part != "body"]
    name = place[0] if place else None
    if first["type"] == "refused_parameter":
        refused = first["ctx"]["name"]
        return BadRequestError(
            f"{refused!r} is the gateway's own and cannot be sent by a client.",
            "Name the corpus in `model`.",
            param=refused,
            code="parameter_not_allowed",
        )
    if first["type"] == "extra_forbidden":
        return BadRequestError(
            f"Unrecognized request argument supplied: {'.'.join(place)}.", param=name, code="unknown_parameter"
        )
    if first["type"] == "missing" and place:
        return BadRequestError(
            f"Missing required parameter: {'.'.join(place)!r}.", param=name, code="missing_required_parameter"
        )
    if first["type"] in ("json_invalid", "model_attributes_type", "missing"):
        return BadRequestError(
            "The body is not a JSON object.", "Send one, with the header content-type: application/json."
        )
    return BadRequestError(f"Invalid value for {name!r}: {first['msg']}.", param=name)
