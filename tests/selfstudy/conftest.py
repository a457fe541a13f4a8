"""A random model that ends its turns soon, saved to disk so that another process can load the very same one."""

from pathlib import Path

import pytest

from cartridge_core.corpus import ChunkConfig, Corpus, Document
from cartridge_core.models import BaseModel, load_base_model
from cartridge_core.selfstudy.config import SelfStudyConfig
from cartridge_core.teacher.local import LocalTeacher


@pytest.fixture(scope="session")
def talkative(tiny_base, tmp_path_factory) -> Path:  # type: ignore[no-untyped-def]
    """Folder of a tiny model in which every eighth token ends a turn."""
    folder: Path = tmp_path_factory.mktemp("models") / "talkative"
    base = tiny_base("qwen2")
    base.model.save_pretrained(folder)
    base.tokenizer.save_pretrained(folder)
    (folder / "generation_config.json").write_text(f'{{"eos_token_id": {list(range(0, base.vocab_size, 8))}}}')
    return folder


@pytest.fixture(scope="session")
def base(talkative: Path) -> BaseModel:
    return load_base_model(talkative, device="cpu")


@pytest.fixture
def teacher(base: BaseModel) -> LocalTeacher:
    return LocalTeacher(base)


@pytest.fixture(scope="session")
def corpus() -> Corpus:
    texts = (
        "\n".join(f"The {what} of patient {i} is {i * 7}." for i in range(40)) for what in ("ward", "room", "nurse")
    )
    return Corpus("wards", tuple(Document(f"{i}.txt", f"File {i}", "text/plain", text) for i, text in enumerate(texts)))


@pytest.fixture(scope="session")
def config() -> SelfStudyConfig:
    return SelfStudyConfig(
        num_conversations=92,
        conversations_per_chunk=8,
        temperature_a=1.0,
        max_tokens_a=12,
        max_tokens_b=12,
        top_k=5,
        chunk=ChunkConfig(min_tokens=30, max_tokens=90),
        chunks_per_shard=2,
        seed=7,
    )
