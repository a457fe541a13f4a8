"""Flow `fit-cartridge`: a Cartridge is trained."""

from pathlib import Path
from typing import Any, Literal

from prefect import flow

from cartridge_core.settings import Settings
from cartridge_core.stages.config import config_of
from cartridge_core.stages.fit import fit
from cartridge_core.stages.ingest import find_corpus
from cartridge_core.stages.initialization_fields import initialization_fields
from cartridge_core.stages.size import default_num_tokens
from cartridge_core.stages.study import find_dataset
from cartridge_core.training.config import TrainingConfig
from flows.gpu_slot import gpu_slot
from flows.naming import run_name
from flows.parameters import Digest, Initialization, LearningRate, Name, NoOrSteps, NumTokens, Processes, Seed, Steps
from flows.reporting import progress_artifact, show_picture, tell_result


@flow(name="fit-cartridge", flow_run_name=run_name("fit"))
def fit_cartridge(
    corpus: Name,
    num_tokens: NumTokens | None = None,
    steps: Steps | None = None,
    learning_rate: LearningRate | None = None,
    objective: Literal["distillation", "next_token"] | None = None,
    version: Digest = "",
    dataset: Digest = "",
    model: str | None = None,
    seed: Seed | None = None,
    config: Path | None = None,
    initialization: Initialization | None = None,
    init_from: str | None = None,
    init_text: Path | None = None,
    processes: Processes = 1,
    on_policy_steps: NoOrSteps | None = None,
) -> dict[str, Any]:
    """Train a Cartridge on a study, or on the corpus's text.

    Args:
        corpus: Name of the corpus.
        num_tokens: Virtual tokens of the Cartridge; None for a twentieth of the corpus.
        steps: Optimiser steps; None for the configuration's own number.
        learning_rate: Peak learning rate; None for the configuration's own.
        objective: What is learned; None for distillation.
        version: Beginning of the corpus version's digest; empty for the newest.
        dataset: Beginning of the dataset's digest; empty for the newest. Unused by next_token.
        model: Hub id or folder; None for the settings' own.
        seed: Seed of initialisation and order; None for the configuration's own.
        config: TOML file of a training configuration; the other parameters win over it.
        initialization: Where keys and values start; None for the configuration's own.
        init_from: Cartridge to start from: the beginning of its digest, its folder, an alias or a version.
        init_text: File of the text to start from.
        processes: Processes of the worker's machine that train together, with a GPU each where there are GPUs.
        on_policy_steps: The last steps, which learn from the Cartridge's own answers; None for the configuration's own.

    Returns:
        The Cartridge's digest and size.
    """
    settings = Settings()
    source = find_corpus(settings, corpus, version)
    if num_tokens is None and config is None:
        num_tokens = default_num_tokens(settings, source, model)
    training = config_of(
        TrainingConfig,
        config,
        num_tokens=num_tokens,
        steps=steps,
        on_policy_steps=on_policy_steps,
        learning_rate=learning_rate,
        objective=objective,
        seed=seed,
        **initialization_fields(initialization, init_from, init_text),
    )
    studied = find_dataset(settings, source, dataset) if training.objective == "distillation" else None
    with gpu_slot(processes), progress_artifact("fit-cartridge") as progress:
        fitted = fit(settings, source, studied, training, model, progress, processes)
    show_picture("loss-curve", fitted.curve, f"Loss of the Cartridge of {corpus}")
    return tell_result("fit-cartridge", fitted.product.facts | {"cached": fitted.product.cached})
