"""A real vLLM server on the CPU, started by the command that production uses."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cartridge_core.settings import Settings
from tests.native_process import NativeProcess, answers
from tests.ports import free_port

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = ROOT / os.environ.get("VENV_VLLM", ".venv-vllm")
"""Of vLLM; a path that is absolute stays as it is."""
COMMAND = ENVIRONMENT / "bin" / "cartridge"
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
    process: NativeProcess

    def start(self) -> None:
        """Start it, on the port that it had before, and wait until it answers."""
        self.process.start()
        self.process.wait_healthy(START_S)

    def revive(self) -> None:
        """Start it again if it was killed."""
        if not self.process.is_healthy():
            self.process.kill()
            self.start()


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
    url = f"http://127.0.0.1:{port}"
    command = (str(COMMAND), "engine", "--port", str(port), "--", *CPU_OPTIONS, *options)
    process = NativeProcess("vllm", command, variables, folder, folder / "vllm.log", answers(f"{url}/health"))
    server = VllmServer(url, settings, process)
    try:
        server.start()
        yield server
    finally:
        process.stop()
