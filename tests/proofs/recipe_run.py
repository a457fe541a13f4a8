"""One training run of one recipe, kept on disk: a comparison of many is not begun anew when it is interrupted."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from cartridge_core.atomic_file import atomic_file
from cartridge_core.digest import digest_of


class Look(BaseModel):
    """One look at the exam."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int
    """Optimizer steps taken."""
    kl: float
    """Divergence from the teacher, nats a predicted token."""
    seconds: float
    """Processor time of the run until then."""


class RecipeRun(BaseModel):
    """What a run showed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    inputs: dict[str, Any]
    """What it depends on."""
    looks: tuple[Look, ...]
    """In order, the first before any step."""
    right: tuple[float, ...]
    """For each question, whether the Cartridge of the best look answers it."""

    @property
    def best(self) -> Look:
        """The look with the smallest divergence, the earliest of equals."""
        return min(self.looks, key=lambda look: look.kl)

    @property
    def accuracy(self) -> float:
        """Share of the questions answered rightly."""
        return sum(self.right) / len(self.right)

    def reached(self, kl: float) -> Look | None:
        """The first look that is as good as this; None if there is none."""
        return next((look for look in self.looks if look.kl <= kl), None)


def kept_run(folder: Path, inputs: dict[str, Any], work: Callable[[], RecipeRun]) -> RecipeRun:
    """The run of these inputs: found in a folder, or made and put there."""
    path = folder / f"{digest_of(inputs)[:24]}.json"
    if path.exists():
        return RecipeRun.model_validate_json(path.read_bytes())
    folder.mkdir(parents=True, exist_ok=True)
    run = work()
    with atomic_file(path) as stream:
        stream.write(run.model_dump_json().encode())
    return run
