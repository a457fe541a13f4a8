"""The quickstart: the sample corpus from documents to an answer, with every baseline beside it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from cartridge_core.baselines import NEXT_TOKEN, SELF_STUDY
from cartridge_core.benchmarks import Question, load_questions
from cartridge_core.progress import Progress, no_progress
from cartridge_core.publishing import Promotion, promote
from cartridge_core.reference.samples import SAMPLE_PATH, SHORT, write_sample
from cartridge_core.settings import Settings
from cartridge_core.stages.arm import grade_arm
from cartridge_core.stages.ask import Answer, ask
from cartridge_core.stages.fit import FittedCartridge, fit
from cartridge_core.stages.grade import GradedCartridge, grade
from cartridge_core.stages.ingest import IngestedCorpus, ingest
from cartridge_core.stages.model import borrowed_model
from cartridge_core.stages.quickstart_plan import QuickstartPlan
from cartridge_core.stages.register import register
from cartridge_core.stages.size import corpus_tokens
from cartridge_core.stages.steps import Step, plain_step
from cartridge_core.stages.study import StudiedDataset, study

if TYPE_CHECKING:
    from cartridge_core.catalog import CatalogEntry

T = TypeVar("T")


@dataclass(frozen=True)
class QuickstartResult:
    """What a quickstart made."""

    plan: QuickstartPlan
    """What was to be done."""
    corpus: IngestedCorpus
    dataset: StudiedDataset
    cartridge: FittedCartridge
    graded: GradedCartridge
    registered: CatalogEntry
    promotion: Promotion
    answer: Answer
    """The reply to one evaluation question, through the Cartridge."""
    figures: dict[str, float]
    """What is measured, under the names that `plan.asked` uses; who called, and saw all of the time, adds `seconds`."""
    seconds_by_stage: dict[str, float]
    """Wall time of each stage in this run."""
    cached: tuple[str, ...]
    """Stages whose product was found rather than made."""


@dataclass
class _Run:
    """Runs steps by name and keeps their time."""

    step: Step
    seconds: dict[str, float] = field(default_factory=dict)

    def __call__(self, name: str, work: Callable[[], T]) -> T:
        started = time.monotonic()
        try:
            return self.step(name, work)
        finally:
            self.seconds[name] = round(time.monotonic() - started, 2)


def quickstart(
    settings: Settings, plan: QuickstartPlan, step: Step = plain_step, progress: Progress = no_progress
) -> QuickstartResult:
    """Ingest, study, train, compare, register, promote, ask. What an earlier run finished is found.

    Args:
        settings: Store, device.
        plan: `SHORT_PLAN`, `LONG_PLAN` or one of the caller's.
        step: Runs each named step; a flow engine makes a task of it.
        progress: Told about the work inside the steps.
    """
    run = _Run(step)
    folder = sample_folder(settings, plan)
    questions = load_questions(folder / "questions.jsonl")
    model = plan.model

    corpus = run("ingest", lambda: ingest(settings, plan.target, [folder / "documents"], progress))
    dataset = run("study", lambda: study(settings, corpus, plan.study, questions, model, progress))
    cartridge = run("train self-study", lambda: fit(settings, corpus, dataset, plan.training, model, progress))
    arms: dict[str, FittedCartridge] = {}
    if plan.next_token_learning_rates:
        arms[NEXT_TOKEN] = run(
            "train next-token", lambda: best_next_token(settings, plan, corpus, questions, model, progress)
        )
    arms[SELF_STUDY] = cartridge
    graded = run(
        "evaluate",
        lambda: grade(
            settings, corpus, arms, questions, "closed_answer", plan.evaluation, model=model, progress=progress
        ),
    )
    registered = run("register", lambda: register(settings, corpus, cartridge, graded))
    promotion = run("promote", lambda: promote(settings, corpus.name, cartridge.digest, gate=plan.gate))
    answer = run("ask", lambda: ask(settings, corpus.name, questions[0].question, reference=cartridge.digest))

    products: dict[str, IngestedCorpus | StudiedDataset | FittedCartridge | GradedCartridge] = {
        "ingest": corpus,
        "study": dataset,
        "train self-study": cartridge,
        "evaluate": graded,
    }
    figures = graded.load().figures() | _sizes(settings, corpus, model)
    return QuickstartResult(
        plan=plan,
        corpus=corpus,
        dataset=dataset,
        cartridge=cartridge,
        graded=graded,
        registered=registered,
        promotion=promotion,
        answer=answer,
        figures=figures,
        seconds_by_stage=run.seconds,
        cached=tuple(name for name, product in products.items() if product.product.cached),
    )


def sample_folder(settings: Settings, plan: QuickstartPlan) -> Path:
    """Where the plan's documents and questions lie: shipped for the short sample, written on demand for others."""
    if plan.sample == SHORT:
        return SAMPLE_PATH
    return write_sample(plan.sample, settings.home / "samples" / plan.target)


def best_next_token(
    settings: Settings,
    plan: QuickstartPlan,
    corpus: IngestedCorpus,
    questions: tuple[Question, ...],
    model: str,
    progress: Progress = no_progress,
) -> FittedCartridge:
    """The next-token baseline at its best: of several learning rates, the one that answers most *evaluation* questions.

    Choosing on the evaluation questions favours the baseline, on purpose: it is to be no straw man.
    """
    candidates = []
    for learning_rate in plan.next_token_learning_rates:
        config = plan.training.model_copy(update={"objective": "next_token", "learning_rate": learning_rate})
        fitted = fit(settings, corpus, None, config, model, progress)
        result = grade_arm(
            settings, corpus, NEXT_TOKEN, questions, "closed_answer", plan.evaluation, fitted, 0, model, progress
        )
        candidates.append((result.score or 0.0, fitted))
    return max(candidates, key=lambda candidate: candidate[0])[1]


def _sizes(settings: Settings, corpus: IngestedCorpus, model: str) -> dict[str, float]:
    """Length of the corpus in tokens, alone and against the model's window."""
    tokens = corpus_tokens(settings, corpus, model)
    with borrowed_model(settings, model) as base:
        return {"corpus_tokens": tokens, "corpus_over_window": tokens / base.max_positions}
