"""The whole chain as one function, for a notebook or a script: from documents to a promoted Cartridge without Prefect.

The flow `train-cartridge` runs the same stages in the same order, so either finds what the other has finished.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cartridge_core.benchmarks import load_questions
from cartridge_core.evaluation import EvaluationConfig
from cartridge_core.progress import Progress, no_progress
from cartridge_core.publishing import Promotion, PromotionGate, promote
from cartridge_core.selfstudy.config import SelfStudyConfig
from cartridge_core.settings import Settings
from cartridge_core.stages.fit import FittedCartridge, fit
from cartridge_core.stages.grade import GradedCartridge, grade
from cartridge_core.stages.ingest import IngestedCorpus, ingest
from cartridge_core.stages.questions import exam
from cartridge_core.stages.register import register
from cartridge_core.stages.size import default_num_tokens
from cartridge_core.stages.study import StudiedDataset, study
from cartridge_core.training.config import TrainingConfig

if TYPE_CHECKING:
    from cartridge_core.catalog import CatalogEntry

EVALUATION = EvaluationConfig(allow_overflow=True)
"""How users' Cartridges are graded: a corpus longer than the model's window is a reason to build one, not an error."""


@dataclass(frozen=True)
class BuiltCartridge:
    """What a build made, stage by stage."""

    corpus: IngestedCorpus
    """The corpus version."""
    dataset: StudiedDataset
    """What the model studied."""
    cartridge: FittedCartridge
    """The trained Cartridge."""
    graded: GradedCartridge
    """Its evaluation."""
    entry: CatalogEntry
    """Its place in the catalog."""
    promotion: Promotion
    """What the gate said."""


def build(
    settings: Settings,
    name: str,
    paths: Sequence[Path | str],
    questions: Path | None = None,
    study_config: SelfStudyConfig | None = None,
    training_config: TrainingConfig | None = None,
    gate: PromotionGate | None = None,
    model: str | None = None,
    progress: Progress = no_progress,
) -> BuiltCartridge:
    """Ingest, study, fit, grade, register and, if the gate lets it through, promote. Finished stages are not redone.

    Args:
        settings: Stores, device, default model.
        name: What to call the corpus.
        paths: Files and folders of documents.
        questions: JSONL file of evaluation questions; without one the model asks them itself.
        study_config: How the corpus is studied.
        training_config: How the Cartridge is trained; without one it gets a twentieth of the corpus's tokens.
        gate: What the Cartridge must show to be promoted.
        model: Hub id or folder; None for the settings' own.
        progress: Told about the work inside the stages.
    """
    held_out = load_questions(questions) if questions else ()
    corpus = ingest(settings, name, paths, progress)
    dataset = study(settings, corpus, study_config or SelfStudyConfig(), held_out, model, progress)
    training = training_config or TrainingConfig(num_tokens=default_num_tokens(settings, corpus, model))
    cartridge = fit(settings, corpus, dataset, training, model, progress)
    asked = exam(settings, corpus, dataset, questions, model=model, progress=progress)
    arms = {"self_study": cartridge}
    graded = grade(settings, corpus, arms, asked.questions, asked.benchmark, EVALUATION, model=model, progress=progress)
    entry = register(settings, corpus, cartridge, graded)
    promotion = promote(settings, corpus.name, cartridge.digest, gate=gate)
    return BuiltCartridge(corpus, dataset, cartridge, graded, entry, promotion)
