"""One vLLM server for all tests of this folder: it takes most of a minute to start."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from cartridge_core.cartridge import Cartridge
from cartridge_core.compose import compose
from cartridge_core.corpus import Corpus, Document
from cartridge_core.models import BaseModel, load_base_model
from cartridge_core.prefix_kv import PrefixKV
from cartridge_core.publishing.artifact import CARTRIDGE_FILES, cartridge_key
from cartridge_core.reference.samples import SHORT, draw_sample
from cartridge_core.settings import Settings
from cartridge_core.storage import open_store, put_folder
from cartridge_core.training.config import TrainingConfig
from cartridge_core.training.loop import train
from tests.serving.shop import Shop
from tests.serving.vllm.shapes import MEMORY, OPTIONS, model_of
from tests.vllm_server import EXACT, VllmServer, vllm_server

NUM_TOKENS = {"a": 64, "b": 50, "c": 80, "d": 80, "e": 20, "first": 72}
"""Tokens of each Cartridge: with blocks of 32, whole blocks and parts of one."""
BASE = "reference"
KEY = "an attachment key for tests, long enough"


@dataclass
class Shelf:
    """Trained Cartridges of one base model, in an artifact store."""

    base: BaseModel
    folder: Path
    settings: Settings
    cartridges: dict[str, Cartridge] = field(default_factory=dict)

    def new(self, name: str, num_tokens: int = 40) -> Cartridge:
        """Train a Cartridge on a document of its own and store it."""
        documents, _ = draw_sample(replace(SHORT, seed=name))
        corpus = Corpus(name, (Document("a.md", documents[0].title, "text/markdown", documents[0].text),))
        # Few steps: what matters here is that these keys and values are no text's.
        config = TrainingConfig(
            objective="next_token", num_tokens=num_tokens, steps=3, window_tokens=64, warmup_steps=0
        )
        cartridge = train(self.base, corpus, None, config, self.folder / name).cartridge
        put(self.settings, cartridge, self.folder / name / "cartridge")
        self.cartridges[name] = cartridge
        return cartridge

    def front(self, names: tuple[str, ...]) -> PrefixKV | None:
        """What transformers gets as past keys and values."""
        return compose([self.cartridges[name] for name in names]) if names else None

    def stored(self, name: str) -> Path:
        """Where the artifact store has it."""
        return Path(self.settings.artifact_root) / cartridge_key("default", self.cartridges[name].digest)


def put(settings: Settings, cartridge: Cartridge, folder: Path) -> None:
    """Into the artifact store, where registering puts it."""
    key = cartridge_key(cartridge.manifest.tenant, cartridge.digest)
    put_folder(open_store(settings.artifact_root), folder, key, CARTRIDGE_FILES)


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    folder: Path = tmp_path_factory.mktemp("shelf")
    settings = Settings(home=folder / "home", attachment_key=KEY, base_model=model_of(folder))
    made = Shelf(load_base_model(settings.base_model, device="cpu"), folder, settings)
    for name, num_tokens in NUM_TOKENS.items():
        made.new(name, num_tokens)
    return made


@pytest.fixture(scope="session")
def one_vllm(shelf: Shelf, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    folder: Path = tmp_path_factory.mktemp("vllm")
    with vllm_server(shelf.settings, folder, *EXACT, *MEMORY, *OPTIONS) as server:
        yield server


@pytest.fixture(scope="module")
def vllm(one_vllm: VllmServer) -> VllmServer:
    """The one server, alive whatever the module before did to it."""
    one_vllm.revive()
    return one_vllm


@pytest.fixture(scope="module")
def shop(shelf: Shelf, tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """A catalog over the same artifact store."""
    made = Shop(
        shelf.base,
        tmp_path_factory.mktemp("shop"),
        attachment_key=KEY,
        base_model=BASE,
        artifact_root=shelf.settings.artifact_root,
    )
    made.add("clinic", 1, "champion")
    made.add("law", 1, "champion")
    return made
