"""vLLM and a gateway in front of it, each as production starts it, on a model of random weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from cartridge_core.models import load_tokenizer
from cartridge_core.settings import Settings
from tests.proofs.bench_serve import SHAPE
from tests.proofs.gateway_process import serve_command
from tests.proofs.serving_arms import make_model
from tests.vllm_server import vllm_server

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
            # The model's own window is larger than what is needed here, and both sides have to say the same.
            config = folder / "serve.toml"
            config.write_text(f"window = {_WINDOW}\n", encoding="utf-8")
            variables = {
                "CARTRIDGE_HOME": str(settings.home),
                "CARTRIDGE_BASE_MODEL": str(model),
                "CARTRIDGE_ATTACHMENT_KEY": _KEY,
            }
            with serve_command(folder, variables, "--vllm", engine.url, "--config", str(config)) as (_, url):
                yield Pair(engine.url, url, model)
