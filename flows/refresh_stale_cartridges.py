"""Flow `refresh-stale-cartridges`: corpora whose documents changed are trained again, from their last Cartridge on."""

from pathlib import Path
from typing import Any

from prefect import flow
from prefect.deployments import run_deployment

from cartridge_core.settings import Settings
from cartridge_core.stages.staleness import StaleCorpus, read_again, stale_corpora
from flows.parameters import Name, NumConversations, Share, Steps
from flows.reporting import progress_artifact, tell_result
from flows.train_cartridge import train_cartridge


@flow(name="refresh-stale-cartridges", flow_run_name="refresh stale Cartridges")
def refresh_stale_cartridges(
    corpora: list[Name] | None = None,
    model: str | None = None,
    num_conversations: NumConversations | None = None,
    steps: Steps | None = None,
    min_share_of_icl: Share = 0.95,
    study_config: Path | None = None,
    hand_off_chains: bool = False,
) -> dict[str, Any]:
    """Read documents again and, where they changed, train a Cartridge of the last one's size that starts from it.

    Args:
        corpora: Names; None for all.
        model: Hub id or folder of the base model; None for the settings' own. It must be the last Cartridge's.
        num_conversations: Conversations to study; None for the configuration's own number.
        steps: Optimiser steps; None for the configuration's own number.
        min_share_of_icl: The gate: at least this share of in-context learning's score.
        study_config: TOML file of the study's configuration.
        hand_off_chains: Every corpus becomes a run of `train-cartridge`'s deployment, at most one for the same content;
            this run does not wait for them. Otherwise they run in this process, one after another.

    Returns:
        Names of the corpora that were looked at, and of those that are trained again.
    """
    settings = Settings()
    with progress_artifact("refresh-stale-cartridges") as progress:
        newest = read_again(settings, corpora or (), progress)
    stale = stale_corpora(settings, newest)
    for corpus in stale:
        parameters: dict[str, Any] = {
            "corpus": corpus.name,
            "paths": [str(source) for source in corpus.sources],
            "model": model,
            "num_tokens": corpus.num_tokens,
            "num_conversations": num_conversations,
            "steps": steps,
            "min_share_of_icl": min_share_of_icl,
            "study_config": str(study_config) if study_config else None,
            "init_from": corpus.cartridge,
        }
        if hand_off_chains:
            run_deployment(
                "train-cartridge/train-cartridge",
                parameters=parameters,
                timeout=0,
                idempotency_key=_once(corpus),
                as_subflow=False,
            )
        else:
            train_cartridge(**parameters)
    told = {"looked_at": [corpus.name for corpus in newest], "trained_again": [corpus.name for corpus in stale]}
    return tell_result("refresh-stale-cartridges", told)


def _once(corpus: StaleCorpus) -> str:
    """The same change of a corpus is trained once, however often the schedule comes round meanwhile."""
    return f"refresh/{corpus.name}/{corpus.digest}/{corpus.cartridge}"
