"""Flow `refresh-stale-cartridges`: corpora whose documents changed are trained again, from their champion on."""

from pathlib import Path
from typing import Any

from prefect import flow

from cartridge_core.errors import CartridgeError
from cartridge_core.progress import Progress
from cartridge_core.settings import Settings
from cartridge_core.stages.staleness import Standing, Watched, corpus_names, look_again
from flows.handing_off import set_going
from flows.parameters import Fraction, Name, NumConversations, NumQuestions, Processes, Share, Steps, Teachers
from flows.reporting import progress_artifact, tell_result
from flows.retrying import with_retries
from flows.train_cartridge import train_cartridge

STARTED, UNDER_WAY, TRAINED = "started", "under_way", "trained_again"
"""What became of a stale corpus: a run was started, an earlier one goes on, the chain ran in this process."""
OUTCOMES = (*(kind.value for kind in Standing if kind is not Standing.STALE), STARTED, UNDER_WAY, TRAINED)
"""What may become of a corpus."""


class RefreshError(CartridgeError):
    """Some corpora could not be refreshed; the others were."""


@flow(name="refresh-stale-cartridges", flow_run_name="refresh stale Cartridges")
def refresh_stale_cartridges(
    corpora: list[Name] | None = None,
    model: str | None = None,
    questions: dict[Name, Path] | None = None,
    num_conversations: NumConversations | None = None,
    steps: Steps | None = None,
    min_share_of_icl: Share = 0.95,
    min_score_without_icl: Fraction | None = None,
    min_questions: NumQuestions | None = None,
    max_error_share: Fraction | None = None,
    study_config: Path | None = None,
    training_config: Path | None = None,
    processes: Processes = 1,
    teachers: Teachers = None,
    hand_off_chains: bool = False,
) -> dict[str, Any]:
    """Read documents again and, where they changed, train a Cartridge of the champion's size that starts from it.

    Args:
        corpora: Names; None for all. Those without a champion are left alone.
        model: Hub id or folder of the base model; None for the settings' own. It must be the champion's.
        questions: JSONL file of evaluation questions of each corpus that has one, by the corpus's name; the others' the
            model asks itself.
        num_conversations: Conversations to study; None for the configuration's own number.
        steps: Optimiser steps; None for the configuration's own number.
        min_share_of_icl: The gate: at least this share of in-context learning's score.
        min_score_without_icl: The gate: at least this score where the corpus does not fit the model's window; None for
            the gate's own.
        min_questions: The gate: at least so many questions; None for the gate's own.
        max_error_share: The gate: at most this share of questions that could not be asked; None for the gate's own.
        study_config: TOML file of the study's configuration.
        training_config: TOML file of the training's configuration.
        processes: Processes of the worker's machine that train together.
        teachers: Addresses of vLLM servers with the model, for the study; None for the settings' own, or else the model
            in the worker's process.
        hand_off_chains: Every corpus becomes a run of `train-cartridge`'s deployment, one at a time for the same
            content; this run does not wait for them. Otherwise they run in this process, one after another.

    Returns:
        What became of each corpus: the names by that.

    Raises:
        RefreshError: Some could not be refreshed, each for a reason of its own; all others were.
    """
    settings, exams = Settings(), questions or {}
    chain = {
        "model": model,
        "num_conversations": num_conversations,
        "steps": steps,
        "min_share_of_icl": min_share_of_icl,
        "min_score_without_icl": min_score_without_icl,
        "min_questions": min_questions,
        "max_error_share": max_error_share,
        "study_config": study_config,
        "training_config": training_config,
        "processes": processes,
        "teachers": teachers,
    }
    told: dict[str, list[str]] = {kind: [] for kind in OUTCOMES}
    failed: dict[str, str] = {}
    with progress_artifact("refresh-stale-cartridges") as progress:
        # A name that only the questions have is somebody's slip: there is no such corpus, and that is told.
        for name in corpora or sorted({*corpus_names(settings), *exams}):
            asked = chain | {"questions": exams.get(name)}
            try:
                told[_refresh(settings, name, asked, hand_off_chains, progress)].append(name)
            except CartridgeError as error:
                failed[name] = str(error)
    result = tell_result("refresh-stale-cartridges", told | {"failed": failed})
    if failed:
        reasons = " ".join(f"{name}: {reason}" for name, reason in failed.items())
        raise RefreshError(
            f"{len(failed)} corpora could not be refreshed; the others were looked at. {reasons}",
            "Mend that; they are looked at again when the schedule comes round.",
        )
    return result


def _refresh(settings: Settings, name: str, asked: dict[str, Any], hand_off_chain: bool, progress: Progress) -> str:
    """Look at one corpus and train where that is due; what became of it."""
    found: Watched = with_retries(f"read {name}", lambda: look_again(settings, name, progress))
    if found.standing is not Standing.STALE or found.champion is None:
        return found.standing.value
    champion = found.champion
    chain = asked | {
        "corpus": name,
        "paths": [str(source) for source in found.sources],
        "num_tokens": champion.num_tokens,
        "init_from": champion.digest,
    }
    if not hand_off_chain:
        train_cartridge(**chain)
        return TRAINED
    purpose = f"refresh/{settings.tenant}/{name}/{found.digest}/{champion.digest}"
    return STARTED if set_going("train-cartridge", chain, purpose) else UNDER_WAY
