"""Progress of long work, said to whoever listens: a terminal bar, a Prefect artifact, nobody."""

from collections.abc import Callable

Progress = Callable[[int, int, str], None]
"""Called with (done, total, what is being done)."""


def no_progress(done: int, total: int, what: str) -> None:
    """Tell nobody."""
