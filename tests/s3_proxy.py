"""A real proxy in front of a real S3 server, which spoils some of the answers."""

import http.client
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

HOP_BY_HOP = {"connection", "transfer-encoding", "expect", "keep-alive"}


@dataclass
class Faults:
    """What shall go wrong: called with the method, the path and how often that was asked before."""

    of: Callable[[str, str, int], str | None] = lambda method, path, times: None
    """Answers `500`, `gone` (no such upload), `hang`, `cut` or None."""
    asked: dict[tuple[str, str], int] = field(default_factory=dict)
    """Requests by method and path."""
    hang_s: float = 5.0


@contextmanager
def s3_proxy(endpoint: str) -> Iterator[tuple[str, Faults]]:
    """URL of the proxy and what it does wrong, while the block runs."""
    faults, lock = Faults(), threading.Lock()
    host = urlsplit(endpoint).netloc

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            with lock:
                place = (self.command, self.path)
                times = faults.asked.get(place, 0)
                faults.asked[place] = times + 1
                fault = faults.of(self.command, self.path, times)
            if fault == "hang":
                time.sleep(faults.hang_s)
                self.close_connection = True
                return
            if fault in ("500", "gone"):
                status, code = (500, "InternalError") if fault == "500" else (404, "NoSuchUpload")
                text = f"<Error><Code>{code}</Code><Message>out of order</Message></Error>"
                self._send(status, [("Content-Type", "application/xml")], text.encode())
                return
            server = http.client.HTTPConnection(host, timeout=30)
            kept = {name: value for name, value in self.headers.items() if name.lower() not in HOP_BY_HOP}
            server.request(self.command, self.path, body=body or None, headers=kept)
            reply = server.getresponse()
            content = reply.read()
            headers = [(n, v) for n, v in reply.getheaders() if n.lower() not in HOP_BY_HOP | {"content-length"}]
            server.close()
            length = int(reply.getheader("Content-Length") or 0) if self.command == "HEAD" else len(content)
            self._send(reply.status, headers, content, length, cut=fault == "cut")

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = answer

        def _send(
            self,
            status: int,
            headers: list[tuple[str, str]],
            content: bytes,
            length: int | None = None,
            cut: bool = False,
        ) -> None:
            try:
                self.send_response(status)
                for name, value in headers:
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content) if length is None else length))
                self.end_headers()
                self.wfile.write(content[: len(content) // 2] if cut else content)
                self.close_connection = self.close_connection or cut
            except ConnectionError:  # the client has given up
                self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", faults
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
