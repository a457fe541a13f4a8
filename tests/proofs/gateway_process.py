"""`cartridge serve` in a process of its own, on a tiny random model and two Cartridges, for measurements."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import psutil

from cartridge_core.models import load_base_model
from tests.conftest import build_tiny_base
from tests.serving.shop import Shop

ROOT = Path(__file__).resolve().parents[2]
CORPORA = ("clinic", "law")


@dataclass(frozen=True)
class ServedProcess:
    """A gateway that runs, and the process to watch."""

    url: str
    process: psutil.Process
    shop: Shop


@contextmanager
def gateway_process(**config: Any) -> Iterator[ServedProcess]:
    """Start it on the embedded engine, with these fields of its configuration.

    Raises:
        RuntimeError: It does not start.
    """
    with TemporaryDirectory(prefix="cartridge-proof-") as name:
        folder = Path(name)
        made = build_tiny_base("qwen2")
        made.model.save_pretrained(folder / "tiny")
        made.tokenizer.save_pretrained(folder / "tiny")
        shop = Shop(load_base_model(folder / "tiny", device="cpu"), folder)
        for corpus in CORPORA:
            shop.add(corpus, 1, "champion")
        file = folder / "serve.toml"
        file.write_text("\n".join(f"{field} = {json.dumps(value)}" for field, value in config.items()), "utf-8")
        variables = {
            "CARTRIDGE_HOME": str(shop.settings.home),
            "CARTRIDGE_BASE_MODEL": str(folder / "tiny"),
            "CARTRIDGE_DEVICE": "cpu",
            "CARTRIDGE_THREADS": "1",
        }
        with serve_command(folder, variables, "--config", str(file)) as (process, url):
            yield ServedProcess(url, process, shop)


@contextmanager
def serve_command(folder: Path, variables: dict[str, str], *options: str) -> Iterator[tuple[psutil.Process, str]]:
    """`cartridge serve` on a free port until the block ends: the process and its address.

    Args:
        folder: Where its log goes: a pipe that nobody empties would stop it at its first thousand requests.
        variables: Further environment.
        *options: Of the command.

    Raises:
        RuntimeError: It does not start.
    """
    main = "from cartridge_core.cli.main import main; main()"
    command = [sys.executable, "-c", main, "serve", "--port", "0", "--json", *options]
    log = folder / "gateway.log"
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | variables
    with log.open("wb") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, env=environment)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(log.read_text("utf-8")[-2000:])
        yield psutil.Process(process.pid), json.loads(line)["url"]
    finally:
        process.terminate()
        try:
            process.wait(40)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def listening_on(port: int) -> psutil.Process | None:
    """The process of this machine that listens on a port; None where it cannot be told."""
    for connection in psutil.net_connections("tcp"):
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
            return psutil.Process(connection.pid)
    return None


def answers_left(url: str, seconds: float = 10.0) -> float:
    """Answers that the engine still has once it had time to notice that nobody waits; NaN where nobody says."""
    left, until = float("nan"), time.monotonic() + seconds
    while time.monotonic() < until and left != 0:
        ready = httpx.get(f"{url}/readyz", timeout=10).json()
        left = float(ready["running"] + ready["waiting"])
        time.sleep(0.1)
    return left
