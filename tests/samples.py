"""Small but real products for tests of the stores: a corpus, Cartridges with tensors, graded reports."""

import functools
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from cartridge_core.benchmarks import BENCHMARKS, Question
from cartridge_core.benchmarks.interval import wilson
from cartridge_core.cartridge import Cartridge, LayerSpec, PrefixKV
from cartridge_core.corpus import Corpus, Document
from cartridge_core.evaluation import ArmResult, QuestionRow
from cartridge_core.inference.prefix import prefill
from cartridge_core.manifest import BaseModelIdentity
from cartridge_core.models import BaseModel
from cartridge_core.publishing import CorpusSource
from cartridge_core.registry.client import registry_client
from cartridge_core.rendering import template_digest
from cartridge_core.report import EvaluationReport
from cartridge_core.settings import Settings

CORPUS = Corpus("clinic", (Document("docs/mayer.md", "Mayer", "text/markdown", "Mrs Mayer is in room 12."),), ())
SOURCE = CorpusSource("clinic", CORPUS.digest, num_documents=1, num_skipped=0, uri="docs")
REFERENCE = BaseModelIdentity(id="reference", revision="r1", config_digest="c" * 64, tokenizer_digest="d" * 64)
NUM_LAYERS, NUM_KV_HEADS, NUM_TOKENS, HEAD_DIM = 2, 2, 6, 8


def save_cartridge(
    folder: Path,
    seed: int = 0,
    *,
    base_model: BaseModelIdentity = REFERENCE,
    corpus_digest: str | None = CORPUS.digest,
    tenant: str = "default",
    next_position: int = NUM_TOKENS,
) -> Cartridge:
    """A Cartridge with tensors drawn from a seed, saved."""
    generator = torch.Generator().manual_seed(seed)
    keys, values = (
        [torch.randn(NUM_KV_HEADS, NUM_TOKENS, HEAD_DIM, generator=generator) for _ in range(NUM_LAYERS)]
        for _ in range(2)
    )
    cartridge = Cartridge.from_prefix(
        PrefixKV(keys, values, next_position),
        base_model=base_model,
        layers=[LayerSpec(num_kv_heads=NUM_KV_HEADS, head_dim=HEAD_DIM)] * NUM_LAYERS,
        dtype=torch.float32,
        template_digest="e" * 64,
        corpus_digest=corpus_digest,
        dataset_digest="f" * 64,
        training_config_digest="1" * 64,
        seed=seed,
        tenant=tenant,
    )
    cartridge.save(folder)
    return cartridge


def cartridge_of(base: BaseModel, content: PrefixKV | Sequence[int], **changed: object) -> Cartridge:
    """A Cartridge of a model: of these keys and values, or of those of these tokens.

    Args:
        base: The model.
        content: Keys and values, or token ids.
        **changed: Fields of its manifest that are to be others.
    """
    fields = {
        "base_model": base.identity,
        "layers": base.layer_specs,
        "dtype": base.kv_dtype,
        "template_digest": template_digest(base.tokenizer),
    }
    prefix = content if isinstance(content, PrefixKV) else prefill(base, list(content))
    return Cartridge.from_prefix(prefix, **(fields | changed))  # type: ignore[arg-type]


def arm(name: str, right: int, n: int = 20, *, errors: int = 0, cartridge_digest: str | None = None) -> ArmResult:
    """An arm that answered `right` of `n` questions; `n` of 0 stands for one that does not fit."""
    scores = [1.0] * right + [0.0] * (n - right)
    return ArmResult(
        name=name,
        metric="Accuracy",
        fits=n > 0,
        score=right / n if n else None,
        interval=wilson(scores) if n else None,
        n=n,
        unparsed=0,
        errors=errors,
        unfinished=0,
        num_tokens=NUM_TOKENS if cartridge_digest else 600,
        kv_bytes=1000 if cartridge_digest else 100_000,
        cartridge_digest=cartridge_digest,
        seconds=1.0,
        rows=tuple(
            QuestionRow(
                arm=name,
                question_id=f"q{index}",
                question="Which room?",
                answer="12",
                reply="12" if score else "13",
                score=score,
                parsed=True,
                finished=True,
                num_reply_tokens=2,
            )
            for index, score in enumerate(scores)
        ),
    )


def grade(
    digest: str, right: int = 19, *, icl: int | None = 20, no_context: int = 2, n: int = 20, errors: int = 0
) -> EvaluationReport:
    """A report on a Cartridge that got `right` of `n`; `icl` None where the corpus does not fit."""
    return EvaluationReport.build(
        corpus=CORPUS,
        questions=[Question(id=f"q{index}", question="Which room?", answer="12") for index in range(n)],
        base_model=REFERENCE,
        benchmark=BENCHMARKS["closed_answer"],
        results=[
            arm("no_context", no_context, n),
            arm("icl", icl or 0, n if icl is not None else 0),
            arm("self_study", right, n, errors=errors, cartridge_digest=digest),
        ],
        seconds=3.0,
    )


def embedded(home: Path, **more: Any) -> Settings:
    """Settings of embedded stores below a folder, whatever the environment says; MLflow's database is made already."""
    uri = f"sqlite:///{home}/mlflow.db"
    if "mlflow_tracking_uri" not in more:
        give_mlflow(home)
    defaults = {
        "home": home,
        "tenant": "default",
        "catalog_url": f"sqlite:///{home}/catalog.db",
        "artifact_root": str(home / "artifacts"),
        "mlflow_tracking_uri": uri,
    }
    return Settings(**(defaults | more))


def give_mlflow(home: Path) -> None:
    """Put MLflow's empty database into a home: making its tables takes seconds, which every test would pay."""
    home.mkdir(parents=True, exist_ok=True)
    shutil.copy(Path(_mlflow_database().name, "mlflow.db"), home / "mlflow.db")


@functools.cache
def _mlflow_database() -> tempfile.TemporaryDirectory[str]:
    """MLflow's database with its tables."""
    folder: tempfile.TemporaryDirectory[str] = tempfile.TemporaryDirectory(prefix="mlflow-")
    settings = Settings(home=Path(folder.name), mlflow_tracking_uri=f"sqlite:///{folder.name}/mlflow.db")
    with registry_client(settings) as client:
        client.search_registered_models()
    return folder
