"""The gateway as one ASGI application: OpenAI's endpoints, models, health, metrics, operators, the page."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response

from cartridge_core import __version__
from cartridge_core.serving.admin import operator_routes
from cartridge_core.serving.caller import Caller
from cartridge_core.serving.error_replies import add_error_handlers
from cartridge_core.serving.gateway import Gateway
from cartridge_core.serving.gone import erase_gone
from cartridge_core.serving.openai_types import ChatRequest, CompletionRequest
from cartridge_core.serving.pins import restore_pins
from cartridge_core.serving.request_log import RequestLog


def create_app(gateway: Gateway) -> FastAPI:
    """The application.

    Args:
        gateway: Its parts; started and closed with the application.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await gateway.engine.start()
        # Beside the first requests: neither a database that is down nor a long load keeps them waiting.
        beside = [
            asyncio.create_task(restore_pins(gateway.catalogue, gateway.model.identity, gateway.engine)),
            asyncio.create_task(erase_gone(gateway.catalogue, gateway.engine)),
        ]
        try:
            yield
        finally:
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)
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
    add_error_handlers(app)
    _add_answers(app, gateway)
    _add_models(app, gateway)
    _add_health(app, gateway)
    _add_page(app)
    app.include_router(operator_routes(gateway), responses=_ERRORS)
    return app


_PAGE = Path(__file__).with_name("page.html")
_PAGE_HEADERS = {
    # The page's own script and style, its own gateway, nothing from anywhere else, and in nobody's frame.
    "content-security-policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}

_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"description": text}
    for status, text in (
        (400, "The request cannot be answered as it is."),
        (401, "No valid API key."),
        (403, "The key or this gateway may not do this, or no key is there and another machine was asked for."),
        (404, "No such corpus, alias or version."),
        (409, "The gate refused, or the Cartridge cannot be moved to."),
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
        """Show one model: a corpus, an alias, a version, a composition or the base model."""
        return await gateway.models.entry(caller, name)


def _add_page(app: FastAPI) -> None:
    page = _PAGE.read_text(encoding="utf-8")

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def index() -> HTMLResponse:
        return HTMLResponse(page, headers=_PAGE_HEADERS)


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

    @app.get("/metrics", response_class=PlainTextResponse, responses=_ERRORS)
    async def metrics(caller: Annotated[Caller, Depends(gateway.reader_of_metrics)]) -> Response:
        """Numbers for Prometheus."""
        return Response(await gateway.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")
