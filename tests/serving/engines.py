"""Engines as the gateway sees them: the real door, and in the place of vLLM an application that computes nothing."""

import asyncio
import socket
import threading
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from cartridge_core.serving.attachment import PARAMETER, Attachment
from cartridge_core.serving.engine_door import EngineDoor

KEY = "an attachment key for tests, long enough"


@dataclass
class StubVllm:
    """What stands behind the door: says that it is well, and that each answer came through its Cartridge."""

    told: list[tuple[str, str]] = field(default_factory=list)
    """First digest and residency of each attachment that came."""
    answer: asyncio.Event = field(default_factory=asyncio.Event)
    """Answers wait for it."""
    status: int = 200
    """What it answers with; nothing else than 200 is an answer."""

    def application(self) -> Starlette:
        """The ASGI application, without the door."""
        return Starlette(
            routes=[
                Route("/health", lambda request: Response()),
                Route("/v1/models", lambda request: JSONResponse({"data": [{"id": "reference"}]})),
                Route("/v1/completions", self._completed, methods=["POST"]),
            ]
        )

    async def _completed(self, request: Request) -> Response:
        attachment = Attachment.verified((await request.json())["kv_transfer_params"][PARAMETER], KEY.encode())
        self.told.append((attachment.cartridges[0].digest, attachment.residency))
        await self.answer.wait()
        if self.status != 200:
            return JSONResponse({"error": {"message": "failed", "type": "internal", "code": self.status}}, self.status)
        usage = {"completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": attachment.num_tokens}}
        return JSONResponse({"choices": [{"index": 0, "text": "a", "finish_reason": "length"}], "usage": usage})


class StubEngine:
    """A stub behind the real door, listening on a port of its own, in a thread; each start is a new process's."""

    def __init__(self, folder: Path, artifact_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self._variables = {"HOME": str(folder), "ARTIFACT_ROOT": artifact_root, "ATTACHMENT_KEY": KEY}
        self._monkeypatch = monkeypatch
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.vllm = StubVllm()
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Listen."""
        self.vllm = StubVllm()
        self.vllm.answer.set()
        for name, value in self._variables.items():
            self._monkeypatch.setenv(f"CARTRIDGE_{name}", value)
        door = EngineDoor(self.vllm.application())
        server = self._server = uvicorn.Server(
            uvicorn.Config(door, port=self.port, log_config=None, timeout_graceful_shutdown=1)
        )
        self._thread = threading.Thread(target=server.run, daemon=True)
        self._thread.start()
        for _ in range(500):
            if server.started:
                return
            threading.Event().wait(0.01)
        raise AssertionError("The stub does not listen.")

    def stop(self) -> None:
        """Go away, and forget everything."""
        if self._server is not None and self._thread is not None:
            self._server.should_exit = True
            self._thread.join(10)
            self._server = None

    @property
    def told(self) -> list[str]:
        """Residencies of the attachments that came since its start."""
        return [residency for _, residency in self.vllm.told]
