"""The server around the gateway: how it listens, and how it stops without cutting anybody off."""

import logging
import socket
import sys
import time
from collections.abc import Callable
from types import FrameType

import uvicorn
from fastapi import FastAPI

from cartridge_core.errors import SettingsError
from cartridge_core.serving.application import create_app
from cartridge_core.serving.config import GatewayConfig
from cartridge_core.serving.door import check_may_listen
from cartridge_core.serving.gateway import Gateway
from cartridge_core.serving.local_engine import LocalEngine, LocalEngineConfig
from cartridge_core.serving.prompt import read_served_model
from cartridge_core.serving.request_log import JsonLines
from cartridge_core.serving.tracing import tracing
from cartridge_core.settings import Settings
from cartridge_core.stages.model import borrowed_model, model_name

log = logging.getLogger("cartridge.gateway")


class DrainingServer(uvicorn.Server):
    """Told to stop, it says so at /readyz, refuses new requests, and ends when the last answer is written.

    A second signal ends it at once.

    Args:
        app: What it serves.
        gateway: Its parts.
        listening: Told the address once requests are answered.
    """

    def __init__(self, app: FastAPI, gateway: Gateway, listening: Callable[[str], None] = lambda url: None) -> None:
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
        self._gateway, self._drain_s, self._listening = gateway, config.drain_s, listening
        self._deadline: float | None = None

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self.servers[0].sockets[0].getsockname()[1])

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and say where."""
        await super().startup(sockets)
        if self.started:
            host = self._gateway.config.host
            self._listening(f"http://{f'[{host}]' if ':' in host else host}:{self.port}")

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


def serve(settings: Settings, config: GatewayConfig, model: str | None, listening: Callable[[str], None]) -> None:
    """Serve a base model and the Cartridges of the catalog from this process until it is told to stop.

    Args:
        settings: Name stores, tenant, device and threads.
        config: How the gateway is run.
        model: The base model, hub id or folder; None for the settings' own.
        listening: Told the address once requests are answered.

    Raises:
        SettingsError: It may not listen there, or the address is taken.
        CartridgeError: The model cannot be loaded, or the catalog cannot be asked who may listen.
    """
    check_may_listen(settings, config.host)
    listener = _bound(config)
    with tracing(), listener, borrowed_model(settings, model) as base:
        log_to_stderr()
        local = LocalEngineConfig(config.cache_bytes, config.max_running, config.max_waiting, config.load_wait_s)
        gateway = Gateway(
            settings,
            config,
            read_served_model(model_name(settings, model)),
            LocalEngine(base, settings, local),
        )
        DrainingServer(create_app(gateway), gateway, listening).run([listener])


def log_to_stderr() -> None:
    """Log as JSON, a line an event."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for name in ("cartridge", "uvicorn.error"):
        logging.getLogger(name).setLevel(logging.INFO)


def _bound(config: GatewayConfig) -> socket.socket:
    """A socket on the address asked for; taken before a model is loaded for nothing."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    try:
        return socket.create_server((config.host, config.port), family=family, backlog=2048)
    except OSError as error:
        raise SettingsError(
            f"The gateway cannot listen on {config.host}:{config.port}: {error.strerror or error}.",
            "Choose another with --port, or stop what listens there.",
        ) from error
