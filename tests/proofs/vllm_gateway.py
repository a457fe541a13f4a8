"""vLLM and a gateway in front of it, each as production starts it, on a model of random weights."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from cartridge_core.models import load_tokenizer
from cartridge_core.settings import Settings
from tests.proofs.bench_serve import SHAPE
from tests.proofs.serving_arms import make_model
from tests.vllm_server import vllm_server

ROOT = Path(__file__).resolve().parents[2]
_KEY, _WINDOW = "k" * 40, 4096


@dataclass(frozen=True)
class Pair:
    """Both addresses, and the folder of their model."""

    engine: str
    gateway: str
    model: Path


@contextmanager
def vllm_and_gateway() -> Iterator[Pair]:
    """Start both; they end with the block.

    Raises:
        RuntimeError: The gateway does not start.
    """
    with TemporaryDirectory(prefix="cartridge-proof-") as name:
        folder = Path(name)
        model = make_model(SHAPE, load_tokenizer("reference"), folder / SHAPE.name)
        settings = Settings(home=folder / "home", attachment_key=_KEY, base_model=str(model))
        with vllm_server(settings, folder, "--max-model-len", str(_WINDOW)) as engine:
            environment = os.environ | {
                "PYTHONPATH": str(ROOT),
                "CARTRIDGE_HOME": str(settings.home),
                "CARTRIDGE_BASE_MODEL": str(model),
                "CARTRIDGE_ATTACHMENT_KEY": _KEY,
            }
            # The model's own window is larger than what is needed here, and both sides have to say the same.
            config = folder / "serve.toml"
            config.write_text(f"window = {_WINDOW}\n", encoding="utf-8")
            main = "from cartridge_core.cli.main import main; main()"
            command = [sys.executable, "-c", main, "serve", "--port", "0", "--json", "--vllm", engine.url]
            command += ["--config", str(config)]
            with (folder / "gateway.log").open("wb") as log:
                process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, env=environment)
            try:
                assert process.stdout is not None
                line = process.stdout.readline()
                if not line:
                    raise RuntimeError((folder / "gateway.log").read_text("utf-8")[-2000:])
                yield Pair(engine.url, json.loads(line)["url"], model)
            finally:
                process.terminate()
                process.wait(60)
