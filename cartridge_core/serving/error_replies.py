"""How whatever goes wrong looks from outside: always OpenAI's envelope, never a path or an address."""

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from cartridge_core.errors import (
    CartridgeError,
    CatalogError,
    NotFoundError,
    PublishingError,
    SettingsError,
    StorageError,
)
from cartridge_core.serving.errors import BadRequestError, ServingError, UnavailableError
from cartridge_core.serving.request_log import refuse

_STATUS: tuple[tuple[type[CartridgeError], int, str], ...] = (
    (NotFoundError, 404, "not_found"),
    (SettingsError, 400, "invalid_value"),
    (PublishingError, 409, "refused"),
    (CatalogError, 503, "catalog_unavailable"),
    (StorageError, 503, "artifact_unavailable"),
)
"""How errors of the library look from outside."""


def add_error_handlers(app: FastAPI) -> None:
    """Let every error of an application's endpoints be answered in the envelope."""

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
    if status < 500:
        made = kind(error.problem, error.remedy, code=code)
    else:
        # What went wrong inside may name folders and addresses: the caller gets the kind, the log the words.
        made = kind("Something that the gateway needs did not do its part.", "Its log says what.", code=code)
        made.__cause__ = error
    made.status = status  # type: ignore[misc]  # of this one instance
    return made


def _invalid(error: RequestValidationError) -> BadRequestError:
    """The first thing that is wrong, in the words that OpenAI has for it."""
    errors = error.errors()
    # Of a field that may have several types each one complains; the deepest complaint knows best what was meant.
    first = max((e for e in errors if e["loc"][:2] == errors[0]["loc"][:2]), key=lambda e: len(e["loc"]))
    place = [str(part) for part in first["loc"][1:]]  # behind where it is: the body, the query
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
