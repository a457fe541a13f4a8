"""A whole workplace for tests of stages, command line and flows: a tiny model on disk, documents, questions, a home.

The model is random but real, and it ends its turns soon, so that study, training and grading run in seconds.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from cartridge_core.corpus import ChunkConfig, Corpus
from cartridge_core.dataset import ConversationDataset
from cartridge_core.evaluation import EvaluationConfig
from cartridge_core.models import BaseModel
from cartridge_core.publishing import PromotionGate
from cartridge_core.reference.samples import Sample
from cartridge_core.reference.world import Scale
from cartridge_core.selfstudy.config import SelfStudyConfig
from cartridge_core.settings import Settings
from cartridge_core.stages.quickstart_plan import QuickstartPlan
from cartridge_core.training.config import TrainingConfig
from tests.samples import give_mlflow

STUDY = SelfStudyConfig(
    num_conversations=48,
    conversations_per_chunk=8,
    temperature_a=1.0,
    max_tokens_a=8,
    max_tokens_b=8,
    top_k=5,
    chunk=ChunkConfig(min_tokens=30, max_tokens=90),
)


@dataclass(frozen=True)
class Workplace:
    """Where a test works."""

    settings: Settings
    documents: Path
    questions: Path
    model: str
    study_file: Path
    """The study's configuration as TOML, for commands."""


@dataclass(frozen=True)
class ChunkedStudy:
    """A study whose teacher read a chunk at a time, as `synthesize` makes it."""

    base: BaseModel
    corpus: Corpus
    dataset: ConversationDataset


@pytest.fixture(scope="session")
def talkative(tiny_base: Callable[[str], BaseModel], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny model in which every sixth token, and every one without text, ends a turn."""
    return save_talkative(tmp_path_factory.mktemp("models") / "talkative", tiny_base("qwen2"))


def save_talkative(folder: Path, base: BaseModel) -> Path:
    """Write that model into a folder, and return it."""
    base.model.save_pretrained(folder)
    base.tokenizer.save_pretrained(folder)
    ends = [token for token in range(base.vocab_size) if token % 6 == 0 or token >= len(base.tokenizer)]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}), encoding="utf-8")
    return folder


def write_documents(folder: Path) -> Path:
    """Three small files about patients."""
    folder.mkdir(parents=True, exist_ok=True)
    for what in ("nurse", "room", "ward"):
        lines = "\n".join(f"The {what} of patient {i} is {i * 7}." for i in range(12))
        (folder / f"{what}.md").write_text(f"# The {what}s\n\n{lines}\n", encoding="utf-8")
    return folder


def write_questions(path: Path) -> Path:
    """Questions with closed answers about those patients."""
    records = [
        {"id": f"q{i}", "question": f"Which ward has patient {i}?", "answer": str(i * 7), "distractors": ["5", "6"]}
        for i in range(6)
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def study_toml(path: Path) -> Path:
    """The study's configuration as a file."""
    fields = STUDY.model_dump(exclude={"chunk", "families"})
    lines = [f"{name} = {value}" for name, value in fields.items()]
    lines += ["[chunk]", *(f"{name} = {getattr(STUDY.chunk, name)}" for name in ("min_tokens", "max_tokens"))]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def tiny_plan(model: str) -> QuickstartPlan:
    """A quickstart of seconds."""
    return QuickstartPlan(
        target="tiny",
        sample=Sample("tiny", Scale(3, 2, documents=1), 6),
        study=STUDY,
        training=TrainingConfig(num_tokens=12, steps=2, warmup_steps=1, batch_size=4, eval_every=1),
        next_token_learning_rates=(0.01, 0.05),
        evaluation=EvaluationConfig(max_new_tokens=6, bootstrap_samples=1000),
        gate=PromotionGate(min_share_of_icl=0.0, min_questions=1, max_error_share=1.0),
        asked={"n_questions": {"at_least": 6}, "seconds": {"at_most": 3600}},
        model=model,
    )


@pytest.fixture
def workplace(talkative: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workplace:
    """An empty home in a folder of its own, which is also the working directory."""
    for name in ("CARTRIDGE_CONFIG", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CARTRIDGE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CARTRIDGE_BASE_MODEL", str(talkative))
    monkeypatch.setenv("CARTRIDGE_DEVICE", "cpu")
    give_mlflow(tmp_path / "home")
    return Workplace(
        settings=Settings(),
        documents=write_documents(tmp_path / "documents"),
        questions=write_questions(tmp_path / "questions.jsonl"),
        model=str(talkative),
        study_file=study_toml(tmp_path / "study.toml"),
    )
