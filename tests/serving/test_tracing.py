"""Traces, received over OTLP/HTTP as a collector does: spans, their parents, and what is not in them."""

import gzip
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from cartridge_core.errors import SettingsError
from cartridge_core.serving.engine import GenerationRequest
from cartridge_core.serving.tracing import begin, tracing
from tests.conftest import build_tiny_base
from tests.serving.shop import QUESTION, Running, Shop, events, serving

CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TRACE, PARENT = CALLER.split("-")[1:3]


class Collector:
    """Takes what an exporter sends."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.services: set[str] = set()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                assert self.path == "/v1/traces"
                for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                    named = {pair.key: pair.value.string_value for pair in resource.resource.attributes}
                    collector.services.add(named["service.name"])
                    for scope in resource.scope_spans:
                        collector.spans += scope.spans
                self.send_response(200)
                self.end_headers()

            def log_message(self, *arguments: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def of(self, trace: str) -> dict[str, Any]:
        """The spans of one trace, by name."""
        found = [span for span in self.spans if span.trace_id.hex() == trace]
        assert len({span.name for span in found}) == len(found)
        return {span.name: span for span in found}


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    threading.Thread(target=collector.server.serve_forever, daemon=True).start()
    yield collector
    collector.server.shutdown()
    collector.server.server_close()


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    shop = Shop(build_tiny_base("qwen2"), tmp_path)
    shop.add("clinic", 1, "champion")
    return shop


def attributes(span: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in span.attributes}


def chat(server: Running, traceparent: str, **body: Any) -> Any:
    wanted = {"model": "clinic", "messages": QUESTION, "max_tokens": 6, "temperature": 0} | body
    return server.client.post("/v1/chat/completions", json=wanted, headers={"traceparent": traceparent})


def test_a_request_is_one_trace_from_its_caller_to_the_engine(
    shop: Shop, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    handed: list[GenerationRequest] = []
    other, refused = CALLER.replace("319c", "0000"), CALLER.replace("319c", "1111")
    with tracing() as on, serving(shop) as server:
        assert on
        generate = server.gateway.engine.generate

        def noting(request: GenerationRequest) -> Any:
            handed.append(request)
            return generate(request)

        monkeypatch.setattr(server.gateway.engine, "generate", noting)
        assert chat(server, CALLER).status_code == 200
        assert events(chat(server, other, stream=True))
        assert chat(server, refused, model="none").status_code == 404
        assert server.client.get("/healthz").status_code == 200
        # A traceparent that is none begins a trace of its own.
        assert chat(server, "nonsense").status_code == 200
    assert collector.services == {"cartridge-gateway"}

    spans = collector.of(TRACE)
    assert set(spans) == {"POST /v1/chat/completions", "resolve", "load", "engine"}
    request = spans["POST /v1/chat/completions"]
    assert request.parent_span_id.hex() == PARENT and request.kind == request.SPAN_KIND_SERVER
    assert {spans[name].parent_span_id for name in ("resolve", "load", "engine")} == {request.span_id}
    assert attributes(request)["http.response.status_code"] == 200
    assert attributes(request)["cartridge.corpus"] == "clinic" and attributes(request)["cartridge.version"] == 1
    assert spans["load"].start_time_unix_nano >= spans["resolve"].end_time_unix_nano
    assert request.end_time_unix_nano >= spans["engine"].end_time_unix_nano >= spans["load"].end_time_unix_nano
    # What an engine behind HTTP is to send along names the engine's span as the parent.
    assert handed[0].trace_headers == {"traceparent": f"00-{TRACE}-{spans['engine'].span_id.hex()}-01"}

    # Streamed, and loaded already.
    streamed = collector.of(other.split("-")[1])
    assert set(streamed) == {"POST /v1/chat/completions", "resolve", "engine"}
    assert streamed["engine"].end_time_unix_nano > streamed["engine"].start_time_unix_nano

    gone = collector.of(refused.split("-")[1])
    assert set(gone) == {"POST /v1/chat/completions", "resolve"}
    assert gone["resolve"].status.message == "model_not_found"
    assert attributes(gone["POST /v1/chat/completions"])["http.response.status_code"] == 404

    assert any(span.name == "GET /healthz" for span in collector.spans) is False
    said = b"".join(span.SerializeToString() for span in collector.spans)
    assert b"Ada Lind" not in said and shop.expected("clinic", max_tokens=6).text.encode() not in said


def test_without_the_variable_nothing_is_imported() -> None:
    code = (
        "import sys\n"
        "from cartridge_core.serving.tracing import begin, request_span, span, tracing\n"
        "with tracing() as on, request_span('GET /', {}, {}) as whole, span('x', {}) as part:\n"
        "    part.tell({'a': 1}); part.fail('x'); part.end()\n"
        "    print(on, begin('y', {}), part.headers(), whole.trace_id)\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])\n"
    )
    environment = {"PATH": "", "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["False None {} None", "[]"]


def test_what_cannot_be_done_is_refused_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://127.0.0.1:1/v1/traces")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    with pytest.raises(SettingsError, match="http/protobuf"), tracing():
        pass
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_PROTOCOL")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
        with pytest.raises(SettingsError, match="extra `otel`"), tracing():
            pass
    assert begin("x", {}) is None


def test_a_collector_that_is_down_keeps_nobody_waiting(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    with tracing():
        with serving(shop) as server:
            assert chat(server, CALLER).status_code == 200
            time.sleep(0.2)
            began = time.perf_counter()
            assert chat(server, CALLER).status_code == 200
            assert time.perf_counter() - began < 2
        began = time.perf_counter()
    assert time.perf_counter() - began < 10
