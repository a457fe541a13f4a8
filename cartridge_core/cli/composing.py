"""`cartridge compose`: whether several Cartridges may stand in front of one prompt."""

from pathlib import Path
from typing import Annotated

import typer

from cartridge_core.catalog import CompositionEntry, catalog_session, find_cartridge, manifest_of
from cartridge_core.cli.actor import actor
from cartridge_core.cli.console import JsonOption, facts, progress_bars, show
from cartridge_core.cli.options import ConfigFile, MaxErrorShare, MinQuestions, MinScoreWithoutIcl, Model
from cartridge_core.errors import EvaluationError, NotFoundError
from cartridge_core.evaluation import EvaluationConfig
from cartridge_core.progress import Progress
from cartridge_core.publishing import PromotionGate, record_judged
from cartridge_core.serving.model_name import CorpusReference, parse_model_name
from cartridge_core.settings import Settings
from cartridge_core.stages.build import EVALUATION
from cartridge_core.stages.composition import ComposedPart, grade_composition
from cartridge_core.stages.config import config_of
from cartridge_core.stages.ingest import find_corpus
from cartridge_core.stages.questions import exam
from cartridge_core.stages.registered import RegisteredCartridge
from cartridge_core.stages.study import StudiedDataset, find_dataset


def compose(
    composition: Annotated[
        str,
        typer.Argument(metavar="A+B", help="The Cartridges as the gateway's `model` names them: a+b, a:3+b@canary."),
    ],
    questions: Annotated[
        list[Path] | None,
        typer.Option(help="JSONL file of questions; once for each corpus, in their order. Default: the model asks."),
    ] = None,
    min_share_of_icl: Annotated[
        float | None, typer.Option(help="The gate: share of in-context learning's score, in each corpus's questions.")
    ] = None,
    min_score_without_icl: MinScoreWithoutIcl = None,
    min_questions: MinQuestions = None,
    max_error_share: MaxErrorShare = None,
    model: Model = None,
    config: ConfigFile = None,
    as_json: JsonOption = False,
) -> None:
    """Grade registered Cartridges together and ask the gate. Exit code 1 if it refuses.

    The gateway serves a composition of exactly these Cartridges in this order if they passed and its switch
    `composition` is on. The newest grading counts.

    Example: `cartridge compose handbook+policies --questions handbook.jsonl --questions policies.jsonl`
    """
    settings = Settings()
    references = parse_model_name(composition, "")
    if questions and len(questions) != len(references):
        raise EvaluationError(
            f"{len(questions)} files of questions for {len(references)} corpora.", "Give one for each, or none at all."
        )
    gate = config_of(
        PromotionGate,
        min_share_of_icl=min_share_of_icl,
        min_score_without_icl=min_score_without_icl,
        min_questions=min_questions,
        max_error_share=max_error_share,
    )
    evaluation = config_of(EvaluationConfig, config) if config else EVALUATION
    with progress_bars() as progress:
        files: list[Path | None] = list(questions) if questions else [None] * len(references)
        parts = [_part(settings, *pair, model, progress) for pair in zip(references, files, strict=True)]
        graded = grade_composition(settings, parts, evaluation, model, progress)
    entry = record_judged(settings, graded.load(), gate, actor())
    value = entry.model_dump(mode="json") | {"report": graded.product.directory, "cached": graded.product.cached}
    show(value, as_json, facts(f"{composition}: {'passed' if entry.passed else 'refused'}", _rows(entry, value)))
    if not entry.passed:
        raise typer.Exit(1)


def _part(
    settings: Settings, reference: CorpusReference, file: Path | None, model: str | None, progress: Progress
) -> ComposedPart:
    with catalog_session(settings, read_only=True) as session:
        named = reference.alias or str(reference.version)
        cartridge = RegisteredCartridge(settings, find_cartridge(session, settings.tenant, reference.corpus, named))
    corpus = find_corpus(settings, reference.corpus, cartridge.entry.corpus_digest)
    studied = _studied(settings, cartridge)
    return ComposedPart(cartridge, corpus, exam(settings, corpus, studied, file, model=model, progress=progress))


def _studied(settings: Settings, cartridge: RegisteredCartridge) -> StudiedDataset | None:
    """What it was distilled from, so that generated questions are others; None where that is not on this machine."""
    entry = cartridge.entry
    with catalog_session(settings, read_only=True) as session:
        dataset = manifest_of(session, entry).dataset_digest
    if dataset is None:
        return None
    try:
        corpus = find_corpus(settings, entry.corpus, entry.corpus_digest)
        return find_dataset(settings, corpus, dataset)
    except NotFoundError:
        return None


def _rows(entry: CompositionEntry, value: dict[str, object]) -> dict[str, object]:
    scores = {
        corpus: ", ".join(
            f"{arm} {score:.3f}" if score is not None else f"{arm} does not fit" for arm, score in arms.items()
        )
        for corpus, arms in entry.figures.items()
    }
    return {
        **scores,
        "gate": entry.reason,
        "Cartridges": "\n".join(entry.cartridges),
        "report": value["report"],
        "digest": entry.digest,
    }
