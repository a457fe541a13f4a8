"""A small HTTP proxy in front of S3 that, asked to, answers 500, says nothing, or cuts bodies."""

import http.client
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import urlsplit

Mode = Literal["pass", "error", "hang", "cut"]


class FaultyProxy:
    """Hands requests on, except for a while after `break_for`."""

    def __init__(self, target: str) -> None:
        self.target = urlsplit(target).netloc
        self.url = ""
        self.num_broken = 0
        self._mode: Mode = "pass"
        self._until = 0.0

    def break_for(self, mode: Mode, seconds: float) -> None:
        """Break what is asked in the next seconds."""
        self._mode, self._until = mode, time.monotonic() + seconds

    @property
    def mode(self) -> Mode:
        """What happens to a request now."""
        return self._mode if time.monotonic() < self._until else "pass"


@contextmanager
def faulty_proxy(target: str) -> Iterator[FaultyProxy]:
    """A proxy in front of an HTTP server while the block runs."""
    proxy = FaultyProxy(target)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def handle_any(self) -> None:
            body = self._body()
            mode = proxy.mode
            proxy.num_broken += mode != "pass"
            if mode == "hang":
                while proxy.mode == "hang":
                    time.sleep(0.2)
                self.close_connection = True
                return
            if mode == "error":
                self._answer(500, [("Content-Type", "application/xml")], b"<Error><Code>InternalError</Code></Error>")
                return
            if mode == "cut" and body:
                # Half of what was sent arrives nowhere, as with a connection that breaks on the way.
                self.close_connection = True
                return
            answer, content = self._asked(body)
            self._answer(answer.status, answer.getheaders(), content, cut=mode == "cut")

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_any

        def _body(self) -> bytes:
            if "chunked" in self.headers.get("Transfer-Encoding", ""):
                parts = []
                while size := int(self.rfile.readline().split(b";")[0], 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def _asked(self, body: bytes) -> tuple[http.client.HTTPResponse, bytes]:
            asked = http.client.HTTPConnection(proxy.target, timeout=60)
            skipped = {"transfer-encoding", "content-length", "connection", "expect"}
            headers = {name: value for name, value in self.headers.items() if name.lower() not in skipped}
            asked.request(self.command, self.path, body, headers | {"Content-Length": str(len(body))})
            answer = asked.getresponse()
            content = answer.read()
            asked.close()
            return answer, content

        def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes, cut: bool = False) -> None:
            self.send_response_only(status)
            told = {name.lower(): value for name, value in headers}
            for name, value in headers:
                if name.lower() not in ("transfer-encoding", "content-length", "connection"):
                    self.send_header(name, value)
            length = told.get("content-length") if self.command == "HEAD" else None
            self.send_header("Content-Length", length or str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content[: len(content) // 2] if cut else content)
            if cut:
                self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    proxy.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
