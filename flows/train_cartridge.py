"""Flow `train-cartridge`: from documents to a promoted Cartridge, one flow a stage."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from prefect import flow

from cartridge_core.settings import Settings
from cartridge_core.stages.fit import find_cartridge
from cartridge_core.stages.grade import find_report
from cartridge_core.stages.ingest import find_corpus
from flows.evaluate_cartridge import evaluate_cartridge
from flows.fit_cartridge import fit_cartridge
from flows.handing_off import hand_off
from flows.ingest_corpus import ingest_corpus
from flows.liveness import one_heart
from flows.naming import run_name
from flows.parameters import (
    Fraction,
    Initialization,
    LearningRate,
    Name,
    NoOrSteps,
    NumConversations,
    NumQuestions,
    NumTokens,
    Paths,
    Processes,
    Seed,
    Share,
    Steps,
    Teachers,
)
from flows.patience import patiently
from flows.promote_cartridge import promote_cartridge, verdict
from flows.register_cartridge import register_cartridge
from flows.reporting import show_markdown
from flows.synthesize_conversations import synthesize_conversations

GPU_STEPS: dict[str, Callable[..., dict[str, Any]]] = {
    "fit-cartridge": fit_cartridge,
    "evaluate-cartridge": evaluate_cartridge,
}
"""The steps that need a GPU, by the name of their flow and deployment."""


@flow(name="train-cartridge", flow_run_name=run_name("train"))
def train_cartridge(
    corpus: Name,
    paths: Paths,
    model: str | None = None,
    questions: Path | None = None,
    num_tokens: NumTokens | None = None,
    num_conversations: NumConversations | None = None,
    steps: Steps | None = None,
    learning_rate: LearningRate | None = None,
    min_share_of_icl: Share = 0.95,
    min_score_without_icl: Fraction | None = None,
    min_questions: NumQuestions | None = None,
    max_error_share: Fraction | None = None,
    seed: Seed | None = None,
    study_config: Path | None = None,
    training_config: Path | None = None,
    initialization: Initialization | None = None,
    init_from: str | None = None,
    init_text: Path | None = None,
    processes: Processes = 1,
    on_policy_steps: NoOrSteps | None = None,
    teachers: Teachers = None,
    hand_off_gpu_steps: bool = False,
) -> dict[str, Any]:
    """Ingest, study, fit, evaluate, register and, if the gate lets it through, promote. Finished stages are not redone.

    Args:
        corpus: Name of the corpus.
        paths: Files and folders of documents, as the worker sees them.
        model: Hub id or folder of the base model; None for the settings' own.
        questions: JSONL file of evaluation questions; without one the model asks them itself.
        num_tokens: Virtual tokens of the Cartridge; None for a twentieth of the corpus.
        num_conversations: Conversations to study; None for the configuration's own number.
        steps: Optimiser steps; None for the configuration's own number.
        learning_rate: Peak learning rate; None for the configuration's own.
        min_share_of_icl: The gate: at least this share of in-context learning's score.
        min_score_without_icl: The gate: at least this score where the corpus does not fit the model's window; None for
            the gate's own.
        min_questions: The gate: at least so many questions; None for the gate's own.
        max_error_share: The gate: at most this share of questions that could not be asked; None for the gate's own.
        seed: Seed of study and training; None for the configuration's own.
        study_config: TOML file of the study's configuration.
        training_config: TOML file of the training's configuration.
        initialization: Where keys and values start; None for the configuration's own.
        init_from: Cartridge to start from: the beginning of its digest, its folder, an alias or a version.
        init_text: File of the text to start from.
        processes: Processes of the worker's machine that train together.
        on_policy_steps: The last steps, which learn from the Cartridge's own answers; None for the configuration's own.
        teachers: Addresses of vLLM servers with the model, for the study; None for the settings' own, or else the model
            in this process.
        hand_off_gpu_steps: Training and evaluation become runs of their own deployments, on the pool that those name;
            this run waits for them without a GPU. Otherwise they run in this process.

    Returns:
        What each stage said about its product, by stage.
    """
    gate: dict[str, Any] = {
        "min_share_of_icl": min_share_of_icl,
        "min_score_without_icl": min_score_without_icl,
        "min_questions": min_questions,
        "max_error_share": max_error_share,
    }
    with one_heart():
        ingested = patiently(lambda: ingest_corpus(corpus, paths))
        version = ingested["digest"]
        studied = patiently(
            lambda: synthesize_conversations(
                corpus, num_conversations, version, questions, model, seed, study_config, teachers
            )
        )
        step = hand_off if hand_off_gpu_steps else _here
        fitted = step(
            "fit-cartridge",
            {
                "corpus": corpus,
                "num_tokens": num_tokens,
                "steps": steps,
                "learning_rate": learning_rate,
                "version": version,
                "dataset": studied["digest"],
                "model": model,
                "seed": seed,
                "config": training_config,
                "initialization": initialization,
                "init_from": init_from,
                "init_text": init_text,
                "processes": processes,
                "on_policy_steps": on_policy_steps,
            },
        )
        cartridge = fitted["digest"]
        asked = {"corpus": corpus, "cartridge": cartridge, "questions": questions, "version": version, "model": model}
        graded = step("evaluate-cartridge", asked)
        registered = patiently(lambda: register_cartridge(corpus, cartridge, graded["digest"], version))
        promoted = patiently(lambda: promote_cartridge(corpus, cartridge, **gate))
    told = {
        "corpus": ingested,
        "dataset": studied,
        "cartridge": fitted,
        "report": graded,
        "version": registered,
        "promotion": promoted,
    }
    patiently(lambda: _show_summary(corpus, told))
    return told


def _show_summary(corpus: str, told: Mapping[str, Mapping[str, Any]]) -> None:
    """On the chain's own page: the stages' artifacts lie on the pages of their runs."""
    settings = Settings()
    source = find_corpus(settings, corpus, told["corpus"]["digest"])
    fitted = find_cartridge(settings, source, told["cartridge"]["digest"])
    report = find_report(settings, fitted, told["report"]["digest"]).load()
    links = " · ".join(f"[{text}]({page})" for text, page in told["version"]["pages"].items())
    parts = [verdict(told["promotion"]), report.markdown(), f"In MLflow: {links}" if links else ""]
    show_markdown("cartridge", "\n\n".join(filter(None, parts)), "Comparison, verdict, links")


def _here(flow: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """Run a step in this process."""
    return patiently(lambda: GPU_STEPS[flow](**parameters))
