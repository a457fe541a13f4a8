"""What training gives back, and the file that says that a run is finished."""

from dataclasses import dataclass
from pathlib import Path

import pydantic
from pydantic import ConfigDict

from cartridge_core.atomic_file import atomic_file
from cartridge_core.cartridge import Cartridge
from cartridge_core.digest import canonical_json
from cartridge_core.errors import ArtifactError
from cartridge_core.training.curve import LossCurve
from cartridge_core.training.held_out import HeldOutScore
from cartridge_core.training.run_identity import RunIdentity

CARTRIDGE = "cartridge"
"""Folder of the result within the run's folder."""
CURVE_DATA = "curve.jsonl"
"""The loss curve's numbers within the run's folder."""
CURVE_PICTURE = "curve.png"
"""The loss curve's picture within the run's folder."""
RESULT = "result.json"
"""Written last: a run's folder that holds it is finished."""


@dataclass(frozen=True)
class TrainingResult:
    """A trained Cartridge and how it came about."""

    cartridge: Cartridge
    """The best of the run, by held-out loss."""
    curve: LossCurve
    """Loss of every step and every look."""
    best_step: int
    """Steps that the Cartridge was trained for."""
    best: HeldOutScore
    """Its held-out score."""
    initial: HeldOutScore
    """The held-out score before the first step."""
    steps: int
    """Steps taken in all."""
    stopped_early: bool
    """Whether patience ran out before the configured number of steps."""
    num_examples: int
    """Examples to train on."""
    num_held_out: int
    """Held-out examples."""
    num_unfit: int
    """Conversations left out because they are longer than a row, or than the positions behind the Cartridge."""
    seconds: float
    """Wall time, initialisation and held-out looks included, of all attempts up to their last checkpoint."""
    resumed_from: int | None = None
    """Step of the checkpoint that the last attempt went on from, if it did."""


class _Record(pydantic.BaseModel):
    """`result.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: RunIdentity
    digest: str
    best_step: int
    stopped_early: bool
    num_examples: int
    num_held_out: int
    num_unfit: int
    seconds: float
    resumed_from: int | None


def save_result(result: TrainingResult, run: RunIdentity, folder: Path) -> None:
    """Mark a run's folder as finished; Cartridge and curve lie in it already."""
    record = _Record(
        run=run,
        digest=result.cartridge.digest,
        best_step=result.best_step,
        stopped_early=result.stopped_early,
        num_examples=result.num_examples,
        num_held_out=result.num_held_out,
        num_unfit=result.num_unfit,
        seconds=result.seconds,
        resumed_from=result.resumed_from,
    )
    with atomic_file(folder / RESULT) as stream:
        stream.write(canonical_json(record.model_dump(mode="json")).encode())


def finished_result(run: RunIdentity, folder: Path) -> TrainingResult | None:
    """The result of a run that is finished already; None where it is not.

    Raises:
        TrainingError: The folder holds the result of another run.
        ArtifactError: The result cannot be read.
    """
    path = folder / RESULT
    if not path.is_file():
        return None
    try:
        record = _Record.model_validate_json(path.read_bytes())
    except pydantic.ValidationError as error:
        raise ArtifactError(f"{path} is no result of a training run.", f"Remove {folder}.") from error
    run.check(record.run, str(folder))
    cartridge = Cartridge.load(folder / CARTRIDGE)
    if cartridge.digest != record.digest:
        raise ArtifactError(f"{folder / CARTRIDGE} is not the Cartridge that {path} names.", f"Remove {folder}.")
    curve = LossCurve.load(folder / CURVE_DATA)
    first = curve.held_out[0]
    best = next(look for look in curve.held_out if look.step == record.best_step)
    return TrainingResult(
        cartridge=cartridge,
        curve=curve,
        best_step=record.best_step,
        best=HeldOutScore(best.loss, best.kl),
        initial=HeldOutScore(first.loss, first.kl),
        steps=len(curve.train),
        stopped_early=record.stopped_early,
        num_examples=record.num_examples,
        num_held_out=record.num_held_out,
        num_unfit=record.num_unfit,
        seconds=record.seconds,
        resumed_from=record.resumed_from,
    )
