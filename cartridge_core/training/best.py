"""The best Cartridge so far, in memory and on disk."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from cartridge_core.cartridge import Cartridge
from cartridge_core.errors import ArtifactError
from cartridge_core.training.held_out import HeldOutScore


class KeptRecord(BaseModel):
    """What a checkpoint says about the best Cartridge."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int
    """Steps it was trained for."""
    loss: float
    """Its held-out cross-entropy, nats a predicted token."""
    kl: float
    """The same less the teacher's entropy."""
    digest: str
    """The Cartridge's."""


@dataclass(frozen=True)
class Kept:
    """A Cartridge that was the best when it was looked at."""

    cartridge: Cartridge
    """As it would be served."""
    step: int
    """Steps it was trained for."""
    score: HeldOutScore
    """Its held-out score."""
    folder: Path
    """Where it lies."""

    def record(self) -> KeptRecord:
        """For a checkpoint."""
        return KeptRecord(step=self.step, loss=self.score.loss, kl=self.score.kl, digest=self.cartridge.digest)


class BestCartridge:
    """Keeps the Cartridge with the smallest held-out loss.

    On disk it is a complete artifact, `best/step-000150/`; a better one is complete before a worse one goes.
    """

    def __init__(self, folder: Path, writes: bool = True) -> None:
        """Begin with none.

        Args:
            folder: The run's.
            writes: Whether this process writes the run's files.
        """
        self._home = folder / "best"
        self._writes = writes
        self._kept: Kept | None = None

    @property
    def kept(self) -> Kept:
        """The best so far; there is one from the first offer on."""
        if self._kept is None:
            raise LookupError("nothing has been offered yet")
        return self._kept

    def offer(self, cartridge: Cartridge, step: int, score: HeldOutScore) -> bool:
        """Keep a Cartridge if it is better than the kept one; says whether it is. `prune` removes the worse one."""
        if self._kept is not None and score.loss >= self._kept.score.loss:
            return False
        folder = self._folder(step)
        if self._writes:
            cartridge.save(folder)
        self._kept = Kept(cartridge, step, score, folder)
        return True

    def restore(self, record: KeptRecord) -> None:
        """Take up the best Cartridge that a checkpoint names.

        Raises:
            ArtifactError: It is no longer there, or is damaged.
        """
        folder = self._folder(record.step)
        cartridge = Cartridge.load(folder)
        if cartridge.digest != record.digest:
            raise ArtifactError(f"{folder} holds another Cartridge than the checkpoint's best.", "Remove it.")
        self._kept = Kept(cartridge, record.step, HeldOutScore(record.loss, record.kl), folder)

    def prune(self, needed: set[int]) -> None:
        """Remove all but the best and those of the steps that are needed."""
        if not self._writes or not self._home.is_dir():
            return
        keep = {self._folder(step) for step in needed} | ({self._kept.folder} if self._kept is not None else set())
        for folder in self._home.iterdir():
            if folder not in keep:
                shutil.rmtree(folder)

    def publish(self, folder: Path) -> Kept:
        """Copy the best to its final place; what an earlier run left there goes."""
        if self._writes:
            shutil.rmtree(folder, ignore_errors=True)
            self.kept.cartridge.save(folder)
        return self.kept

    def clear(self) -> None:
        """Remove the folder of the best; it is published."""
        if self._writes:
            shutil.rmtree(self._home, ignore_errors=True)

    def _folder(self, step: int) -> Path:
        return self._home / f"step-{step:06d}"
