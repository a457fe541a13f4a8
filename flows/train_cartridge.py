"""Flow `train-cartridge`: from documents to a promoted Cartridge, one flow a stage."""

from pathlib import Path
from typing import Any

from prefect import flow

from flows.evaluate_cartridge import evaluate_cartridge
from flows.fit_cartridge import fit_cartridge
from flows.ingest_corpus import ingest_corpus
from flows.promote_cartridge import promote_cartridge
from flows.register_cartridge import register_cartridge
from flows.synthesize_conversations import synthesize_conversations


@flow(name="train-cartridge", flow_run_name="train {corpus}")
def train_cartridge(
    corpus: str,
    paths: list[Path],
    model: str | None = None,
    questions: Path | None = None,
    num_tokens: int | None = None,
    num_conversations: int | None = None,
    steps: int | None = None,
    learning_rate: float | None = None,
    min_share_of_icl: float = 0.95,
    seed: int | None = None,
    study_config: Path | None = None,
    training_config: Path | None = None,
    initialization: str | None = None,
    init_from: str | None = None,
    init_text: Path | None = None,
    processes: int = 1,
    on_policy_steps: int | None = None,
) -> dict[str, Any]:
    """Ingest, study, fit, evaluate, register and, if the gate lets it through, promote. Finished stages are not redone.

    Args:
        corpus: Name of the corpus.
        paths: Files and folders of documents, as this worker sees them.
        model: Hub id or folder of the base model; None for the settings' own.
        questions: JSONL file of evaluation questions; without one the model asks them itself.
        num_tokens: Virtual tokens of the Cartridge; None for a twentieth of the corpus.
        num_conversations: Conversations to study; None for the configuration's own number. So too the next two.
        steps: Optimiser steps.
        learning_rate: Peak learning rate.
        min_share_of_icl: The gate: at least this share of in-context learning's score.
        seed: Seed of study and training.
        study_config: TOML file of the study's configuration.
        training_config: TOML file of the training's configuration.
        initialization: Where keys and values start; None for the configuration's own.
        init_from: Cartridge to start from: the beginning of its digest, its folder, an alias or a version.
        init_text: File of the text to start from.
        processes: Processes of the worker's machine that train together.
        on_policy_steps: The last steps, which learn from the Cartridge's own answers; None for the configuration's own.

    Returns:
        What each stage said about its product, by stage.
    """
    ingested = ingest_corpus(corpus, paths)
    version = ingested["digest"]
    studied = synthesize_conversations(corpus, num_conversations, version, questions, model, seed, study_config)
    fitted = fit_cartridge(
        corpus,
        num_tokens,
        steps,
        learning_rate,
        version=version,
        dataset=studied["digest"],
        model=model,
        seed=seed,
        config=training_config,
        initialization=initialization,
        init_from=init_from,
        init_text=init_text,
        processes=processes,
        on_policy_steps=on_policy_steps,
    )
    cartridge = fitted["digest"]
    graded = evaluate_cartridge(corpus, cartridge, questions, version=version, model=model)
    registered = register_cartridge(corpus, cartridge, graded["digest"], version)
    promoted = promote_cartridge(corpus, cartridge, min_share_of_icl)
    return {
        "corpus": ingested,
        "dataset": studied,
        "cartridge": fitted,
        "report": graded,
        "version": registered,
        "promotion": promoted,
    }
