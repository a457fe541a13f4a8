"""Flow `evaluate-cartridge`: a Cartridge and its baselines answer the same questions."""

from pathlib import Path
from typing import Any, Literal

from prefect import flow

from cartridge_core.settings import Settings
from cartridge_core.stages.build import EVALUATION
from cartridge_core.stages.fit import find_cartridge
from cartridge_core.stages.grade import grade
from cartridge_core.stages.ingest import find_corpus
from cartridge_core.stages.questions import exam
from cartridge_core.stages.study import find_dataset
from flows.gpu_slot import gpu_slot
from flows.naming import run_name
from flows.parameters import Digest, Name
from flows.reporting import progress_artifact, show_markdown, show_picture, tell_result
from flows.spreading import spread_over_workers


@flow(name="evaluate-cartridge", flow_run_name=run_name("evaluate"))
def evaluate_cartridge(
    corpus: Name,
    cartridge: Digest = "",
    questions: Path | None = None,
    benchmark: Literal["closed_answer", "free_answer"] | None = None,
    version: Digest = "",
    model: str | None = None,
) -> dict[str, Any]:
    """Grade a Cartridge against no context, the whole corpus in context, and as much of it as fits its memory.

    Args:
        corpus: Name of the corpus.
        cartridge: Beginning of the Cartridge's digest; empty for the newest.
        questions: JSONL file of questions; without one the model asks them itself.
        benchmark: How replies are judged; None decides by what the questions hold.
        version: Beginning of the corpus version's digest; empty for the newest.
        model: Hub id or folder; None for the settings' own.

    Returns:
        The report's digest and figures.
    """
    settings = Settings()
    source = find_corpus(settings, corpus, version)
    fitted = find_cartridge(settings, source, cartridge)
    with gpu_slot(), progress_artifact("evaluate-cartridge") as progress:
        studied = find_dataset(settings, source, fitted.dataset_digest) if fitted.dataset_digest else None
        asked = exam(settings, source, studied, questions, benchmark, model, progress)
        arms = {"self_study": fitted}
        graded = grade(
            settings,
            source,
            arms,
            asked.questions,
            asked.benchmark,
            EVALUATION,
            model=model,
            progress=progress,
            spread=spread_over_workers(settings),
        )
    show_markdown("evaluation", graded.load().markdown(), f"Cartridge of {corpus} against its baselines")
    show_picture("score-against-memory", graded.plot, f"Cartridge of {corpus} against its baselines")
    return tell_result("evaluate-cartridge", graded.product.facts | {"cached": graded.product.cached})
