"""Traces of requests in OpenTelemetry's form, sent over OTLP/HTTP where the process is told where to.

`OTEL_EXPORTER_OTLP_ENDPOINT` (or `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`) switches them on; OpenTelemetry's other
variables (`OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES`, `OTEL_TRACES_SAMPLER`, ...) mean what they mean elsewhere.
Without them nothing of OpenTelemetry is imported, and a span costs the test of one variable. Spans never hold what was
asked or answered.
"""

import os
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing, contextmanager
from typing import Any, TypeVar

from cartridge_core import __version__
from cartridge_core.errors import SettingsError

T = TypeVar("T")

Attributes = Mapping[str, str | int | float | None]
"""Names in OpenTelemetry's form (`http.route`) to values."""

_SWITCHES = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")

_tracer: Any = None
"""OpenTelemetry's tracer of this process; None where nobody traces."""


class Span:
    """A piece of work in a trace; does nothing where nobody traces.

    Args:
        span: OpenTelemetry's own.
    """

    def __init__(self, span: Any = None) -> None:
        self._span = span

    @property
    def trace_id(self) -> str | None:
        """The trace's id in hex; None where nobody traces."""
        return None if self._span is None else f"{self._span.get_span_context().trace_id:032x}"

    def tell(self, attributes: Attributes) -> None:
        """Add attributes; those that are None are left out."""
        if self._span is not None:
            self._span.set_attributes(_known(attributes))

    def headers(self) -> dict[str, str]:
        """What a request to another server carries, so that its spans are children of this one."""
        if self._span is None:
            return {}
        from opentelemetry.trace import set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        carried: dict[str, str] = {}
        TraceContextTextMapPropagator().inject(carried, set_span_in_context(self._span))
        return carried

    def fail(self, problem: str) -> None:
        """Mark it as failed.

        Args:
            problem: A code, no text of a user's.
        """
        if self._span is not None:
            from opentelemetry.trace import Status, StatusCode

            self._span.set_status(Status(StatusCode.ERROR, problem))

    def end(self) -> None:
        """It is over."""
        if self._span is not None:
            self._span.end()

    async def over(self, pieces: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
        """The same pieces; the span ends with them, however that is."""
        try:
            async with aclosing(pieces):
                async for piece in pieces:
                    yield piece
        except Exception as error:
            self.fail(getattr(error, "code", type(error).__name__))
            raise
        finally:
            self.end()


_NOTHING = Span()


def begin(name: str, attributes: Attributes) -> Span | None:
    """A span below the current one that its owner ends; None where nobody traces."""
    return None if _tracer is None else Span(_tracer.start_span(name, attributes=_known(attributes)))


@contextmanager
def span(name: str, attributes: Attributes) -> Iterator[Span]:
    """A span below the current one, and the current one itself while the block runs."""
    if _tracer is None:
        yield _NOTHING
        return
    with _tracer.start_as_current_span(
        name, attributes=_known(attributes), record_exception=False, set_status_on_exception=False
    ) as started:
        own = Span(started)
        try:
            yield own
        except Exception as error:
            own.fail(getattr(error, "code", type(error).__name__))
            raise


@contextmanager
def request_span(name: str, headers: Mapping[str, str], attributes: Attributes) -> Iterator[Span]:
    """A server's span, below the one that a caller's `traceparent` names.

    Args:
        name: Method and route.
        headers: The request's.
        attributes: What is known at once.
    """
    if _tracer is None:
        yield _NOTHING
        return
    from opentelemetry.trace import SpanKind
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    theirs = TraceContextTextMapPropagator().extract({name.lower(): value for name, value in headers.items()})
    with _tracer.start_as_current_span(
        name, context=theirs, kind=SpanKind.SERVER, attributes=_known(attributes), record_exception=False
    ) as started:
        yield Span(started)


@contextmanager
def tracing() -> Iterator[bool]:
    """Trace while the block runs, if the environment says where to; what is left is sent at its end.

    Yields:
        Whether it does.

    Raises:
        SettingsError: OpenTelemetry is not installed, or another protocol is asked for.
    """
    global _tracer
    if not any(os.environ.get(name) for name in _SWITCHES):
        yield False
        return
    for name in _PROTOCOLS:
        if os.environ.get(name, "http/protobuf") != "http/protobuf":
            raise SettingsError(f"{name} = {os.environ[name]!r} is not spoken here.", "Use http/protobuf.")
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise SettingsError(
            f"{' or '.join(_SWITCHES)} asks for traces, and OpenTelemetry is not installed.",
            "Install the extra `otel`, or unset the variable.",
        ) from error
    named = {"service.name": os.environ.get("OTEL_SERVICE_NAME") or "cartridge-gateway", "service.version": __version__}
    # A provider of our own: libraries in this process that trace into the global one are nobody's business here.
    provider = TracerProvider(resource=Resource.create(named), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    _tracer = provider.get_tracer("cartridge_core.serving", __version__)
    try:
        yield True
    finally:
        _tracer = None
        provider.shutdown()


def _known(attributes: Attributes) -> dict[str, str | int | float]:
    return {name: value for name, value in attributes.items() if value is not None}
