"""How a chain of stages is run: each step by name, so that a flow engine can make a task of it."""

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

T = TypeVar("T")
G = TypeVar("G")


class Spread(Protocol):
    """Does a piece of work for every group of a stage, in any order and place: a flow engine has many workers."""

    def __call__(self, work: Callable[[G], None], groups: Sequence[G], done: Callable[[int], None]) -> None:
        """Do the work for all groups or raise what failed first.

        Args:
            work: Can be sent to another process (by cloudpickle), which sees the same stores.
            groups: What it is called with, once each.
            done: Told how many groups are finished, in this process.
        """
        ...


def in_order(work: Callable[[G], None], groups: Sequence[G], done: Callable[[int], None]) -> None:
    """One group after the other, in this process."""
    for count, group in enumerate(groups, 1):
        work(group)
        done(count)


class Step(Protocol):
    """Runs one named step of a chain and returns what it returns."""

    def __call__(self, name: str, work: Callable[[], T]) -> T:
        """Run `work` under `name`."""
        ...


def plain_step(name: str, work: Callable[[], T]) -> T:
    """Run a step without any engine."""
    return work()
