"""The best Cartridge so far, in memory and on disk."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from cartridge_core.cartridge import Cartridge
from cartridge_core.training.held_out import HeldOutScore


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


class BestCartridge:
    """Keeps the Cartridge with the smallest held-out loss.

    On disk it is a complete artifact, `best/step-000150/`; a better one is complete before a worse one goes.
    """

    def __init__(self, folder: Path) -> None:
        """Begin anew.

        Args:
            folder: The run's; what an earlier run kept in its `best/` is removed.
        """
        self._home = folder / "best"
        shutil.rmtree(self._home, ignore_errors=True)
        self._home.mkdir(parents=True)
        self._kept: Kept | None = None

    @property
    def kept(self) -> Kept:
        """The best so far; there is one from the first offer on."""
        if self._kept is None:
            raise LookupError("nothing has been offered yet")
        return self._kept

    def offer(self, cartridge: Cartridge, step: int, score: HeldOutScore) -> bool:
        """Keep a Cartridge if it is better than the kept one; says whether it is."""
        before = self._kept
        if before is not None and score.loss >= before.score.loss:
            return False
        folder = cartridge.save(self._home / f"step-{step:06d}")
        self._kept = Kept(cartridge, step, score, folder)
        if before is not None:
            shutil.rmtree(before.folder)
        return True

    def publish(self, folder: Path) -> Kept:
        """Move the best to its final place; what an earlier run left there goes."""
        shutil.rmtree(folder, ignore_errors=True)
        self.kept.folder.replace(folder)
        shutil.rmtree(self._home)
        return self.kept
