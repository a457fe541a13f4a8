"""Flow `learn-start`: where a base model's Cartridges begin is learnt from several corpora."""

from pathlib import Path
from typing import Any

from prefect import flow

from cartridge_core.settings import Settings
from cartridge_core.stages.config import config_of
from cartridge_core.stages.size import default_num_tokens
from cartridge_core.stages.start import find_start, learned_start
from cartridge_core.stages.study import newest_studies
from cartridge_core.training.start_config import StartConfig
from flows.gpu_slot import gpu_slot
from flows.naming import run_name
from flows.parameters import Corpora, Digest, NumTokens, Rounds, Seed, Steps
from flows.reporting import progress_artifact, tell_result


@flow(name="learn-start", flow_run_name=run_name("learn start"))
def learn_start(
    corpora: Corpora,
    num_tokens: NumTokens | None = None,
    rounds: Rounds | None = None,
    steps: Steps | None = None,
    model: str | None = None,
    seed: Seed | None = None,
    config: Path | None = None,
    begin: Digest = "",
) -> dict[str, Any]:
    """Learn from the newest studies of several corpora where Cartridges of their base model should start.

    Args:
        corpora: Names of two or more studied corpora.
        num_tokens: Length of the start; None for a twentieth of the shortest corpus.
        rounds: How often the Cartridges' mean is taken; None for the configuration's own number.
        steps: Optimiser steps of each corpus in a round; None for the configuration's own number.
        model: Hub id or folder; None for the settings' own.
        seed: Seed of the order of examples; None for the configuration's own.
        config: TOML file of a start's configuration; the other parameters win over it.
        begin: Beginning of the digest of an earlier start that these corpora go on from; empty for none.

    Returns:
        The start's digest, which `init_from` of `fit-cartridge` and `train-cartridge` takes, and its size.
    """
    settings = Settings()
    studies = newest_studies(settings, corpora, model)
    earlier = find_start(settings, begin) if begin else None
    if num_tokens is None and config is None:
        num_tokens = min(default_num_tokens(settings, source, model) for source, _ in studies)
    learning = config_of(StartConfig, config, num_tokens=num_tokens, rounds=rounds, steps=steps, seed=seed)
    with gpu_slot(), progress_artifact("learn-start") as progress:
        product = learned_start(settings, studies, learning, model, progress, earlier).product
    return tell_result("learn-start", product.facts | {"cached": product.cached})
