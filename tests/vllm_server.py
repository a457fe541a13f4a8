"""A real vLLM server on the CPU, started by the command that production uses."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

from cartridge_core.settings import Settings
from tests.ports import free_port

ROOT = Path(__file__).resolve().parents[1]
VENV = Path(os.environ.get("VENV_VLLM", ".venv-vllm"))
COMMAND = (VENV if VENV.is_absolute() else ROOT / VENV) / "bin" / "cartridge"
START_S = 400.0
"""Three processes import torch and vLLM, one after the other; much longer than they need alone."""

CPU_OPTIONS = ("--block-size", "32", "--gpu-memory-utilization", "0.2")
EXACT = ("--dtype", "float32", "--enforce-eager")
"""Options for comparing with transformers."""


@dataclass
class VllmServer:
    """A server that answers, unless it was killed."""

    url: str
    settings: Settings
    log: Path
    command: tuple[str, ...]
    variables: dict[str, str]
    process: "subprocess.Popen[bytes] | None" = None

    def start(self) -> None:
        """Start it, on the port that it had before, and wait until it answers."""
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                self.command,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self.variables,
                cwd=self.log.parent,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_S
        while not _healthy(self.url):
            said = self.process.poll() is None and time.monotonic() < deadline
            assert said, self.log.read_text(errors="replace")[-4000:]
            time.sleep(0.3)

    def revive(self) -> None:
        """Start it again if it was killed."""
        if not _healthy(self.url):
            self.kill()
            self.start()

    def kill(self) -> None:
        """SIGKILL to it and all its processes."""
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(10)

    def stop(self) -> None:
        """Let it end; whatever does not is killed."""
        if self.process is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(15)
        self.kill()


@contextmanager
def vllm_server(settings: Settings, folder: Path, *options: str, kv_gib: int = 1) -> Iterator[VllmServer]:
    """Start vLLM with the connector; it is stopped with all its processes when the block ends.

    Args:
        settings: Name the stores, the key and the base model.
        folder: Where its log goes; its own copies of Cartridges go into a folder there too.
        *options: vLLM's own.
        kv_gib: Paged memory in GiB.
    """
    assert settings.attachment_key is not None
    assert COMMAND.exists(), f"{COMMAND} is missing: run `make vllm-setup`."
    port = free_port()
    log = folder / "vllm.log"
    variables = {
        **{name: value for name, value in os.environ.items() if not name.startswith("CARTRIDGE_")},
        "CARTRIDGE_HOME": str(folder / "engine"),
        "CARTRIDGE_ARTIFACT_ROOT": settings.artifact_root,
        "CARTRIDGE_ATTACHMENT_KEY": settings.attachment_key.get_secret_value(),
        "CARTRIDGE_BASE_MODEL": settings.base_model,
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_KVCACHE_SPACE": str(kv_gib),
        "VLLM_NO_USAGE_STATS": "1",
        "OMP_NUM_THREADS": "1",
    }
    command = (str(COMMAND), "engine", "--port", str(port), "--", *CPU_OPTIONS, *options)
    server = VllmServer(f"http://127.0.0.1:{port}", settings, log, command, variables)
    try:
        server.start()
        yield server
    finally:
        server.stop()


def _healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=2).status_code == 200
    except httpx.TransportError:
        return False
