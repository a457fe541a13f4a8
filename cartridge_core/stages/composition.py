"""Grading a composition: several Cartridges in front of one prompt answer the questions about all their corpora."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cartridge_core.baselines import BASELINES, ICL, NO_CONTEXT, Arm, trained_arm
from cartridge_core.benchmarks import BENCHMARKS, questions_digest
from cartridge_core.catalog import Status, composition_digest
from cartridge_core.digest import digest_of
from cartridge_core.errors import EvaluationError
from cartridge_core.evaluation import EvaluationConfig, evaluate
from cartridge_core.progress import Progress, no_progress
from cartridge_core.publishing import CompositionGrades
from cartridge_core.report import EvaluationReport
from cartridge_core.settings import Settings
from cartridge_core.stages.build import EVALUATION
from cartridge_core.stages.ingest import IngestedCorpus, store_of
from cartridge_core.stages.model import borrowed_model, model_key
from cartridge_core.stages.questions import Exam
from cartridge_core.stages.registered import RegisteredCartridge
from cartridge_core.stages.store import Facts, Finished

COMPOSITION, ALONE = "composition", "alone"
"""Arms beside the baselines: all Cartridges, and the one of the corpus that is asked about."""


@dataclass(frozen=True)
class ComposedPart:
    """One Cartridge of a composition, and what its corpus is examined in."""

    cartridge: RegisteredCartridge
    corpus: IngestedCorpus
    exam: Exam


@dataclass(frozen=True)
class GradedComposition:
    """Reports on a composition in the digest store, one a corpus."""

    product: Finished
    """Where they lie and how they were made."""

    def load(self) -> CompositionGrades:
        """The reports with their rows."""
        facts = self.product.facts
        return CompositionGrades(
            tuple(facts["cartridges"]),
            {corpus: EvaluationReport.load(self.product.directory / corpus) for corpus in facts["corpora"]},
            str(facts["digest"]),
        )


def grade_composition(
    settings: Settings,
    parts: Sequence[ComposedPart],
    config: EvaluationConfig = EVALUATION,
    model: str | None = None,
    progress: Progress = no_progress,
) -> GradedComposition:
    """Put the questions about each corpus to the composition, and beside it to all corpora in context, to no context,
    and to that corpus's Cartridge alone; or find that this was done.

    Args:
        settings: Stores, device, default model.
        parts: The Cartridges in order, with their corpora and questions.
        config: How the questions are put.
        model: Hub id or folder; None for the settings' own.
        progress: Told about questions over all corpora and arms.

    Raises:
        EvaluationError: There are fewer than two Cartridges or two of one corpus, one was deleted or retired, or a
            corpus has no questions or an unknown benchmark.
        BaseModelMismatchError: A Cartridge belongs to another base model.
    """
    _check(parts)
    cartridges = [part.cartridge.digest for part in parts]
    names = [part.corpus.name for part in parts]
    inputs = {
        "base_model": model_key(settings, model),
        "cartridges": cartridges,
        "corpora": {part.corpus.name: part.corpus.digest for part in parts},
        "questions": [questions_digest(part.exam.questions) for part in parts],
        "benchmarks": [part.exam.benchmark for part in parts],
        "config": config.model_dump(mode="json"),
    }

    def work(directory: Path) -> Facts:
        reports = _reports(settings, parts, config, model, progress)
        for corpus, report in reports.items():
            report.save(directory / corpus)
        digests = {corpus: report.digest for corpus, report in reports.items()}
        return {"digest": digest_of(digests), "cartridges": cartridges, "corpora": names, "reports": digests}

    return GradedComposition(store_of(settings).run("composition", inputs, work))


def _check(parts: Sequence[ComposedPart]) -> None:
    names = [part.corpus.name for part in parts]
    if len(parts) < 2 or len(set(names)) < len(names):
        raise EvaluationError(
            f"{'+'.join(names)!r} is no composition of several corpora.", "Name two or more, each once: a+b."
        )
    for part in parts:
        entry = part.cartridge.entry
        if entry.status in (Status.DELETED, Status.RETIRED):
            raise EvaluationError(
                f"Cartridge {entry.digest[:12]} of {entry.corpus!r} is {entry.status}.", "Name another."
            )
        if not part.exam.questions:
            raise EvaluationError(f"There are no questions about {part.corpus.name!r}.", "Give at least one.")
        if part.exam.benchmark not in BENCHMARKS:
            raise EvaluationError(
                f"There is no benchmark '{part.exam.benchmark}'.", f"Choose from {', '.join(sorted(BENCHMARKS))}."
            )


def _reports(
    settings: Settings, parts: Sequence[ComposedPart], config: EvaluationConfig, model: str | None, progress: Progress
) -> dict[str, EvaluationReport]:
    from cartridge_core.compose import compose
    from cartridge_core.corpus import Corpus

    corpora = [part.corpus.load() for part in parts]
    reports = {}
    with borrowed_model(settings, model) as base:
        cartridges = [part.cartridge.load() for part in parts]
        alone = [trained_arm(base, cartridge, ALONE) for cartridge in cartridges]
        prefix, joined = compose(cartridges), Corpus.joined(corpora)
        shared = [
            Arm(
                name=COMPOSITION,
                prefix=prefix,
                num_tokens=prefix.num_tokens,
                kv_bytes=prefix.kv_bytes(base.kv_dtype),
                cartridge_digest=composition_digest([cartridge.digest for cartridge in cartridges]),
            ),
            *(BASELINES[name](base, joined, 0) for name in (NO_CONTEXT, ICL)),
        ]
        total = len(parts) * (len(shared) + 1)
        for place, (part, corpus) in enumerate(zip(parts, corpora, strict=True)):
            results = []
            for number, arm in enumerate([*shared, alone[place]], start=place * (len(shared) + 1)):

                def overall(done: int, of: int, what: str, before: int = number, about: str = corpus.name) -> None:
                    progress(before * of + done, total * of, f"{about}, {what}")

                benchmark = BENCHMARKS[part.exam.benchmark]
                results.append(evaluate(base, arm, part.exam.questions, benchmark, config, overall))
            reports[corpus.name] = EvaluationReport.build(
                corpus=corpus,
                questions=part.exam.questions,
                base_model=base.identity,
                benchmark=BENCHMARKS[part.exam.benchmark],
                results=results,
                seconds=sum(result.seconds for result in results),
                config=config,
            )
    return reports
