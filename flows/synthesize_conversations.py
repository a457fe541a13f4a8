"""Flow `synthesize-conversations`: a model studies a corpus version."""

from pathlib import Path
from typing import Any

from prefect import flow

from cartridge_core.benchmarks import load_questions
from cartridge_core.selfstudy.config import SelfStudyConfig
from cartridge_core.stages.config import config_of
from cartridge_core.stages.ingest import find_corpus
from cartridge_core.stages.study import study
from cartridge_core.stages.teacher import settings_with
from flows.naming import run_name
from flows.parameters import Digest, Name, NumConversations, Seed, Teachers
from flows.reporting import progress_artifact, tell_result
from flows.spreading import spread_over_workers


@flow(name="synthesize-conversations", flow_run_name=run_name("study"))
def synthesize_conversations(
    corpus: Name,
    num_conversations: NumConversations | None = None,
    version: Digest = "",
    questions: Path | None = None,
    model: str | None = None,
    seed: Seed | None = None,
    config: Path | None = None,
    teachers: Teachers = None,
) -> dict[str, Any]:
    """Make a distillation dataset.

    Args:
        corpus: Name of the corpus.
        num_conversations: Conversations to begin; None for the configuration's own number.
        version: Beginning of the corpus version's digest; empty for the newest.
        questions: JSONL file of evaluation questions that must stay out of the study.
        model: Hub id or folder; None for the settings' own.
        seed: Seed of every draw; None for the configuration's own.
        config: TOML file of a study's configuration; the parameters above win over it.
        teachers: Addresses of vLLM servers with the model, which speak both roles; None for the settings' own, or else
            the model in the worker's process.

    Returns:
        The dataset's digest and its counts.
    """
    settings = settings_with(teachers)
    study_config = config_of(SelfStudyConfig, config, num_conversations=num_conversations, seed=seed)
    held_out = load_questions(questions) if questions else ()
    with progress_artifact("synthesize-conversations") as progress:
        source, spread = find_corpus(settings, corpus, version), spread_over_workers(settings)
        product = study(settings, source, study_config, held_out, model, progress, spread).product
    return tell_result("synthesize-conversations", product.facts | {"cached": product.cached})
