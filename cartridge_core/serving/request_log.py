"""Around every request: an id, a size limit, a line in the log, the numbers, and the count of those in flight."""

import json
import logging
import re
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cartridge_core.serving.errors import BadRequestError, DrainingError, ServingError
from cartridge_core.serving.metrics import Metrics
from cartridge_core.serving.replies import error_reply
from cartridge_core.serving.tracing import request_span

log = logging.getLogger("cartridge.gateway")

NOT_ANSWERED = 499
"""Logged as the status of a request whose caller went away before there was one."""

_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass
class RequestRecord:
    """What is known about a request; whoever serves it adds to it."""

    request_id: str
    route: str
    """Path, without what varies."""
    started: float
    tenant: str = ""
    corpus: str = ""
    fields: dict[str, Any] = field(default_factory=dict)
    """Whatever else the log should say."""


class BodyTooLongError(BadRequestError):
    """The request's body is too long."""

    status = 413
    code = "request_too_large"


@dataclass
class InFlight:
    """Requests being answered, and whether new ones are let in."""

    count: int = 0
    draining: bool = False


class RequestLog:
    """ASGI middleware.

    Args:
        app: What answers.
        metrics: Where numbers go.
        in_flight: Counts the requests that a stopping gateway waits for.
        max_body_bytes: Longest request body.
        clock: Seconds.
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        in_flight: InFlight,
        max_body_bytes: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._app, self._metrics, self._in_flight = app, metrics, in_flight
        self._max_body_bytes, self._clock = max_body_bytes, clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        wanted = headers.get("x-request-id", "")
        request_id = wanted if _ID.fullmatch(wanted) else uuid.uuid4().hex
        record = RequestRecord(request_id, _route(scope["path"]), self._clock())
        scope.setdefault("state", {})["record"] = record
        if not _working(record):
            await self._served(scope, receive, send, record)
            return
        known = {"http.request.method": scope["method"], "http.route": record.route, "cartridge.request": request_id}
        with request_span(f"{scope['method']} {record.route}", headers, known) as span:
            record.fields["trace_id"] = span.trace_id
            status = await self._served(scope, receive, send, record)
            problem = record.fields.get("error")
            span.tell(
                {
                    "http.response.status_code": status,
                    "cartridge.tenant": record.tenant or None,
                    "cartridge.corpus": record.corpus or None,
                    "cartridge.version": record.fields.get("version"),
                    "cartridge.served": record.fields.get("served"),
                }
            )
            if status >= 500 or problem:
                span.fail(str(problem or status))

    async def _served(self, scope: Scope, receive: Receive, send: Send, record: RequestRecord) -> int:
        headers, request_id, status = Headers(scope=scope), record.request_id, NOT_ANSWERED

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        working = _working(record)
        self._in_flight.count += working
        try:
            refusal = self._refusal(headers, working)
            if refusal is not None:
                await refuse(refusal)(scope, receive, sending)
                return status
            await self._app(scope, self._bounded(receive), sending)
        except Exception:  # the process's boundary: whatever it is, the caller gets an answer and others go on
            log.exception("a request failed", extra={"fields": {"request_id": request_id}})
            if status == NOT_ANSWERED:
                await refuse(ServingError("The gateway failed.", f"Tell its operator the id {request_id}."))(
                    scope, receive, sending
                )
        finally:
            self._in_flight.count -= working
            self._tell(scope, record, status)
        return status

    def _refusal(self, headers: Headers, working: bool) -> ServingError | None:
        if working and self._in_flight.draining:
            return DrainingError("This gateway is about to stop.", "Ask again: another one answers.", retry_after=1.0)
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self._max_body_bytes:
            return self._too_long()
        return None

    def _too_long(self) -> BodyTooLongError:
        return BodyTooLongError(f"The request is longer than {self._max_body_bytes:,} bytes.", "Send less.")

    def _bounded(self, receive: Receive) -> Receive:
        read = 0

        async def receiving() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self._max_body_bytes:
                raise self._too_long()
            return message

        return receiving

    def _tell(self, scope: Scope, record: RequestRecord, status: int) -> None:
        seconds = self._clock() - record.started
        if record.route in ("/healthz", "/readyz", "/metrics"):
            return
        self._metrics.requests.labels(record.route, str(status), record.tenant, record.corpus).inc()
        self._metrics.seconds.labels(record.route).observe(seconds)
        said = {
            "request_id": record.request_id,
            "method": scope["method"],
            "path": scope["path"],
            "status": status,
            "seconds": round(seconds, 4),
            "tenant": record.tenant or None,
            "corpus": record.corpus or None,
            **record.fields,
        }
        log.info("request", extra={"fields": {name: value for name, value in said.items() if value is not None}})


class JsonLines(logging.Formatter):
    """Log records as JSON, one a line."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        said = {
            "at": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            said["traceback"] = self.formatException(record.exc_info)
        return json.dumps(said, ensure_ascii=False, default=str)


def refuse(error: ServingError) -> JSONResponse:
    """The refusal as a response."""
    headers = {} if error.retry_after is None else {"retry-after": str(max(1, round(error.retry_after)))}
    return JSONResponse(error_reply(error), error.status, headers)


def _working(record: RequestRecord) -> bool:
    """Whether it is a request that a stopping gateway ends first, and that is traced: no page, no probe."""
    return record.route.startswith(("/v1", "/admin"))


def _route(path: str) -> str:
    """The path without what a caller may make up: labels of metrics must stay few."""
    for known in ("/v1/models", "/admin"):
        if path == known or path.startswith(f"{known}/"):
            return known
    known_paths = ("/", "/v1/chat/completions", "/v1/completions", "/healthz", "/readyz", "/metrics", "/openapi.json")
    return path if path in known_paths else "other"
