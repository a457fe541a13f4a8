"""The server around the gateway: how it listens, and how it stops without cutting anybody off."""

import logging
import time
from types import FrameType

import uvicorn
from fastapi import FastAPI

from cartridge_core.serving.gateway import Gateway

log = logging.getLogger("cartridge.gateway")


class DrainingServer(uvicorn.Server):
    """Told to stop, it says so at /readyz, refuses new requests, and ends when the last answer is written.

    A second signal ends it at once.

    Args:
        app: What it serves.
        gateway: Its parts.
    """

    def __init__(self, app: FastAPI, gateway: Gateway) -> None:
        config = gateway.config
        super().__init__(
            uvicorn.Config(
                app,
                host=config.host,
                port=config.port,
                log_config=None,
                access_log=False,
                server_header=False,
                # Whoever is still there when draining is over has had drain_s already.
                timeout_graceful_shutdown=1,
            )
        )
        self._gateway, self._drain_s = gateway, config.drain_s
        self._deadline: float | None = None

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self.servers[0].sockets[0].getsockname()[1])

    def drain(self) -> None:
        """Begin to stop."""
        self._gateway.in_flight.draining = True
        self._deadline = time.monotonic() + self._drain_s
        log.info("draining", extra={"fields": {"in_flight": self._gateway.in_flight.count}})

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal."""
        if self._deadline is None:
            self._captured_signals.append(sig)
            self.drain()
        else:
            super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        """Whether it is over."""
        if await super().on_tick(counter):
            return True
        if self._deadline is None:
            return False
        return self._gateway.in_flight.count == 0 or time.monotonic() >= self._deadline
