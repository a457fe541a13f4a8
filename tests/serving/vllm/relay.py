"""A relay in front of a server, whose connections can be cut and whose requests can be turned away."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit


class Relay:
    """Passes bytes on, in a thread of its own.

    Args:
        url: The server behind it.
    """

    def __init__(self, url: str) -> None:
        self._host, self._port = str(urlsplit(url).hostname), int(urlsplit(url).port or 80)
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self.url = ""
        self.posts = 0
        """Requests that came."""
        self.drop_posts = False
        """Whether connections of requests are closed without an answer."""
        self.cut_after: int | None = None
        """Bytes of each answer after which its connection is closed."""

    def cut(self) -> None:
        """Close all connections."""
        self._loop.call_soon_threadsafe(lambda: [writer.transport.abort() for writer in list(self._writers)])

    async def _passed(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(self._host, self._port)
        self._writers |= {writer, back}
        try:
            await asyncio.gather(self._asked(reader, back), self._answered(there, writer))
        except OSError:
            pass
        finally:
            for one in (writer, back):
                self._writers.discard(one)
                one.transport.abort()

    async def _asked(self, reader: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            if data.startswith(b"POST"):
                self.posts += 1
                if self.drop_posts:
                    raise ConnectionAbortedError
            back.write(data)
        raise ConnectionAbortedError

    async def _answered(self, there: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sent = 0
        while data := await there.read(1 << 16):
            writer.write(data)
            await writer.drain()
            sent += len(data)
            if self.cut_after is not None and sent >= self.cut_after:
                break
        raise ConnectionAbortedError


@contextmanager
def relay(url: str) -> Iterator[Relay]:
    """A relay that listens."""
    made, ready = Relay(url), threading.Event()

    async def listen() -> None:
        server = await asyncio.start_server(made._passed, "127.0.0.1", 0)
        made.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        ready.set()

    def run() -> None:
        asyncio.set_event_loop(made._loop)
        made._loop.run_until_complete(listen())
        made._loop.run_forever()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield made
    finally:
        made.cut()
        made._loop.call_soon_threadsafe(made._loop.stop)
        thread.join(10)
