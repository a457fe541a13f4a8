"""Something that is wrong with the stores."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Trouble:
    """One thing that is wrong."""

    check: str
    """Name of the check that found it."""
    subject: str
    """What it is about: a folder, a version, an alias."""
    problem: str
    """What is wrong."""
    remedy: str
    """What the repair does, or what there is to do by hand."""
    repair: Callable[[], None] | None = None
    """Sets it right; None where only a person can."""
