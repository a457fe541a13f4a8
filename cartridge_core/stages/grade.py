"""Stage 4: the Cartridge and its baselines answer the same questions; the result is an evaluation report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cartridge_core.baselines import BASELINES, ICL, ICL_TRUNCATED, LORA, NO_CONTEXT
from cartridge_core.benchmarks import BENCHMARKS, Question, questions_digest
from cartridge_core.errors import EvaluationError, NotFoundError
from cartridge_core.evaluation import ArmResult, EvaluationConfig
from cartridge_core.manifest import STORAGE
from cartridge_core.progress import Progress, no_progress
from cartridge_core.report import EvaluationReport
from cartridge_core.settings import Settings
from cartridge_core.stages.adapter import FittedAdapter
from cartridge_core.stages.arm import grade_arm
from cartridge_core.stages.fit import FittedCartridge
from cartridge_core.stages.ingest import IngestedCorpus, store_of
from cartridge_core.stages.model import identity_of, model_key
from cartridge_core.stages.registered import RegisteredCartridge
from cartridge_core.stages.steps import Spread
from cartridge_core.stages.store import Facts, Finished

PLOT = "accuracy_vs_kv_bytes.png"
ALL_BASELINES: tuple[str, ...] = (NO_CONTEXT, ICL, ICL_TRUNCATED)


@dataclass(frozen=True)
class GradedCartridge:
    """An evaluation report in the digest store."""

    product: Finished
    """Where it lies and how it was made."""

    @property
    def digest(self) -> str:
        """Digest of the report."""
        return str(self.product.facts["digest"])

    @property
    def plot(self) -> Path:
        """The picture: score against KV bytes."""
        return self.product.directory / PLOT

    def load(self) -> EvaluationReport:
        """The report with its rows."""
        return EvaluationReport.load(self.product.directory)


def grade(
    settings: Settings,
    corpus: IngestedCorpus,
    cartridges: Mapping[str, FittedCartridge | RegisteredCartridge],
    questions: Sequence[Question],
    benchmark: str = "closed_answer",
    config: EvaluationConfig | None = None,
    baselines: Sequence[str] = ALL_BASELINES,
    model: str | None = None,
    progress: Progress = no_progress,
    quantized: Sequence[str] = (),
    adapter: FittedAdapter | None = None,
    spread: Spread | None = None,
) -> GradedCartridge:
    """Grade Cartridges against baselines on the same questions.

    Args:
        settings: Store, device, default model.
        corpus: What the questions are about.
        cartridges: Name of the arm (`self_study`, `next_token`, ...) to Cartridge.
        questions: Asked of every arm.
        benchmark: A key of `BENCHMARKS`.
        config: How the questions are put.
        baselines: Keys of `BASELINES`; the truncated one gets the memory of the largest Cartridge.
        model: Hub id or folder; None for the settings' own.
        progress: Told about questions over all arms.
        quantized: Keys of `manifest.STORAGE`: the first Cartridge is graded quantised so too, as an arm of that name.
        adapter: A LoRA adapter trained beside the first Cartridge: graded as the arm `lora`.
        spread: Does the arms somewhere; None grades one after the other here.

    Raises:
        EvaluationError: There is no Cartridge, no question, no such benchmark or storage, or an arm does not fit.
    """
    config = config or EvaluationConfig()
    check_grading(cartridges, questions, benchmark, baselines, quantized)
    identity = identity_of(settings, model)
    inputs = {
        "corpus": corpus.digest,
        "name": corpus.name,
        "base_model": model_key(settings, model),
        "cartridges": {name: cartridge.digest for name, cartridge in cartridges.items()},
        "baselines": list(baselines),
        "questions": questions_digest(questions),
        "benchmark": benchmark,
        "config": config.model_dump(mode="json"),
    }
    if quantized:
        inputs["quantized"] = list(quantized)
    if adapter is not None:
        inputs["adapter"] = adapter.digest
    memory = max(cartridge.num_tokens for cartridge in cartridges.values())
    names = [*baselines, *([LORA] if adapter else ()), *cartridges, *quantized]
    exact = next(iter(cartridges.values()))

    def graded(name: str, told: Progress = no_progress) -> ArmResult:
        storage = name if name in quantized else None
        cartridge = exact if storage else cartridges.get(name)
        lora = adapter if name == LORA else None
        return grade_arm(
            settings, corpus, name, questions, benchmark, config, cartridge, memory, model, told, storage, lora
        )

    def grade_elsewhere(name: str) -> None:
        graded(name)

    def work(directory: Path) -> Facts:
        results = []
        if spread is not None:
            # Each arm is a product of its own: what was graded elsewhere is found below.
            spread(grade_elsewhere, names, lambda done: progress(done, len(names), "grading"))
        for index, name in enumerate(names):

            def overall(done: int, total: int, what: str, before: int = index) -> None:
                progress(before * total + done, len(names) * total, what)

            results.append(graded(name, overall))
        report = EvaluationReport.build(
            corpus=corpus.load(),
            questions=questions,
            base_model=identity,
            benchmark=BENCHMARKS[benchmark],
            results=results,
            seconds=sum(result.seconds for result in results),
            config=config,
        )
        report.plot(directory / PLOT)
        report.save(directory)
        return {"digest": report.digest, "cartridge": report.cartridge_digest, "figures": report.figures()}

    return GradedCartridge(store_of(settings).run("grade", inputs, work))


def check_grading(
    cartridges: Mapping[str, FittedCartridge | RegisteredCartridge],
    questions: Sequence[Question],
    benchmark: str,
    baselines: Sequence[str],
    quantized: Sequence[str],
) -> None:
    """Refuse what `grade` cannot do, before anything is trained for it; its arguments are those of `grade`.

    Raises:
        EvaluationError: There is no Cartridge, no question, no such baseline, benchmark or storage.
    """
    if not cartridges:
        raise EvaluationError("There is no Cartridge to grade.", "Train one first.")
    if not questions:
        raise EvaluationError("There are no questions to ask.", "Give at least one.")
    if benchmark not in BENCHMARKS:
        raise EvaluationError(f"There is no benchmark '{benchmark}'.", f"Choose from {', '.join(sorted(BENCHMARKS))}.")
    if LORA in baselines:
        raise EvaluationError(
            "Baseline 'lora' needs an adapter.", "Train one with `fit_adapter` and pass that instead."
        )
    if unknown := set(baselines) - set(BASELINES):
        raise EvaluationError(
            f"There is no baseline '{min(unknown)}'.", f"Choose from {', '.join((*BASELINES, LORA))}."
        )
    if unknown := set(quantized) - set(STORAGE):
        raise EvaluationError(f"There is no quantised storage '{min(unknown)}'.", f"Choose from {', '.join(STORAGE)}.")


def find_report(settings: Settings, cartridge: FittedCartridge, digest: str = "") -> GradedCartridge:
    """The newest report about a Cartridge, or the one whose digest begins with `digest`.

    Raises:
        NotFoundError: There is none.
    """
    products = store_of(settings).finished("grade")
    reports = [GradedCartridge(p) for p in products if p.facts["cartridge"] == cartridge.digest]
    matching = [report for report in reports if report.digest.startswith(digest)]
    if not matching:
        which = f"no report {digest}" if digest else "not been graded"
        remedy = "Grade it with: cartridge evaluate CORPUS --questions FILE.jsonl"
        raise NotFoundError(f"Cartridge {cartridge.digest[:12]} has {which}.", remedy)
    return matching[-1]
