"""Checkpoints: all that a killed run needs to go on as if nothing had happened."""

import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pydantic
from pydantic import ConfigDict
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as dump_tensors
from torch import Tensor

from cartridge_core.atomic_file import atomic_file
from cartridge_core.digest import canonical_json, sha256_bytes, sha256_file
from cartridge_core.errors import ArtifactError
from cartridge_core.training.best import KeptRecord
from cartridge_core.training.curve import LossCurve
from cartridge_core.training.run_identity import RunIdentity
from cartridge_core.training.state import StateRecord

MARKER = "checkpoint.json"
"""Written last: a folder without it is no checkpoint."""
TENSORS = "state.safetensors"
CURVE = "curve.jsonl"


class CheckpointRecord(pydantic.BaseModel):
    """A checkpoint's marker."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1] = 1
    """Of the folder's layout."""
    run: RunIdentity
    """Whose checkpoint it is."""
    state: StateRecord
    """All of the state that is neither a tensor nor the loss curve."""
    best: KeptRecord
    """The best Cartridge at that time; it lies in the run's `best/`."""
    seconds: float
    """Wall time of the run until then."""
    sha256: dict[str, str]
    """Digest of each other file."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory."""

    record: CheckpointRecord
    """Its marker."""
    tensors: Mapping[str, Tensor]
    """`TrainingState.tensors()` on the CPU."""
    curve: LossCurve
    """Steps and looks until then."""


class Checkpoints:
    """The checkpoints of a run: `checkpoints/step-000100/` with tensors, loss curve and, last, the marker."""

    def __init__(self, folder: Path, keep: int) -> None:
        """Look at a run's checkpoints.

        Args:
            folder: The run's.
            keep: How many of the newest are kept when another one is written.
        """
        self._home = folder / "checkpoints"
        self._keep = keep

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, the newest first."""
        markers = self._home.glob(f"step-*/{MARKER}")
        return sorted((int(marker.parent.name.removeprefix("step-")) for marker in markers), reverse=True)

    def record(self, step: int) -> CheckpointRecord:
        """The marker of a checkpoint.

        Raises:
            ArtifactError: It cannot be read, or is of another format.
        """
        marker = self._folder(step) / MARKER
        try:
            return CheckpointRecord.model_validate_json(marker.read_bytes())
        except (OSError, pydantic.ValidationError) as error:
            reason = str(error).splitlines()[0]
            raise ArtifactError(f"{marker} is not a checkpoint's record: {reason}.", "Remove its folder.") from error

    def load(self, step: int) -> Checkpoint:
        """Read a checkpoint and check every file against its digest.

        Raises:
            ArtifactError: A file is missing or damaged.
        """
        folder, record = self._folder(step), self.record(step)
        for name, digest in record.sha256.items():
            path = folder / name
            if name not in (TENSORS, CURVE) or not path.is_file() or sha256_file(path) != digest:
                raise ArtifactError(f"{path} is missing, changed or unknown.", f"Remove {folder}.")
        try:
            tensors = load_tensors((folder / TENSORS).read_bytes())
            curve = LossCurve.load(folder / CURVE)
        except (OSError, SafetensorError, ValueError, TypeError, KeyError) as error:
            raise ArtifactError(f"{folder} cannot be read: {error}.", f"Remove {folder}.") from error
        return Checkpoint(record, tensors, curve)

    def save(
        self,
        run: RunIdentity,
        tensors: Mapping[str, Tensor],
        state: StateRecord,
        curve: LossCurve,
        best: KeptRecord,
        seconds: float,
    ) -> None:
        """Write a checkpoint: a temporary folder, its marker last, then a rename. Then older ones go."""
        self._home.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".new-", dir=self._home))
        data = dump_tensors({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
        _write(staging / TENSORS, data)
        curve.save(staging / CURVE)
        sha256 = {TENSORS: sha256_bytes(data), CURVE: sha256_file(staging / CURVE)}
        record = CheckpointRecord(run=run, state=state, best=best, seconds=seconds, sha256=sha256)
        _write(staging / MARKER, canonical_json(record.model_dump(mode="json")).encode())
        self._remove(state.step)
        staging.replace(self._folder(state.step))
        for step in self.steps()[self._keep :]:
            self._remove(step)

    def best_steps(self) -> set[int]:
        """Steps of the best Cartridges that the checkpoints rely on."""
        needed = set()
        for step in self.steps():
            with suppress(ArtifactError):  # a checkpoint that cannot be read relies on nothing
                needed.add(self.record(step).best.step)
        return needed

    def start_from(self, step: int | None) -> None:
        """Remove what a kill left half written, and the checkpoints after a step; all of them for None."""
        for staging in self._home.glob(".new-*"):
            shutil.rmtree(staging)
        for newer in self.steps():
            if step is None or newer > step:
                self._remove(newer)

    def clear(self) -> None:
        """Remove them all; the run is finished."""
        self.start_from(None)
        shutil.rmtree(self._home, ignore_errors=True)

    def _folder(self, step: int) -> Path:
        return self._home / f"step-{step:06d}"

    def _remove(self, step: int) -> None:
        # The marker goes first: a reader never trusts half a checkpoint.
        (self._folder(step) / MARKER).unlink(missing_ok=True)
        shutil.rmtree(self._folder(step), ignore_errors=True)


def _write(path: Path, data: Any) -> None:
    with atomic_file(path) as stream:
        stream.write(data)
