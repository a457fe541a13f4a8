"""How a chain of stages is run: each step by name, so that a flow engine can make a task of it."""

from collections.abc import Callable
from typing import Protocol, TypeVar

T = TypeVar("T")


class Step(Protocol):
    """Runs one named step of a chain and returns what it returns."""

    def __call__(self, name: str, work: Callable[[], T]) -> T:
        """Run `work` under `name`."""
        ...


def plain_step(name: str, work: Callable[[], T]) -> T:
    """Run a step without any engine."""
    return work()
