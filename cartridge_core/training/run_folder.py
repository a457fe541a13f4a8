"""A run's folder belongs to one process at a time."""

import fcntl
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cartridge_core.errors import TrainingError

_PATIENCE = 30.0
"""Seconds to wait for an owner that may be about to end: the ranks of a killed command notice within a step."""


@contextmanager
def owned_folder(folder: Path, patience: float = _PATIENCE) -> Iterator[None]:
    """Make a run's folder and hold it; the kernel gives it back when the owner dies.

    Raises:
        TrainingError: Another process goes on training in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        deadline = time.monotonic() + patience
        while not _locked(handle):
            if time.monotonic() > deadline:
                raise TrainingError(
                    f"Another process is training in {folder}.", "Wait until it has finished, or end it."
                )
            time.sleep(0.1)
        yield
    finally:
        os.close(handle)


def remove_leftovers(folder: Path, names: Iterable[str]) -> None:
    """Remove what a kill left of these files and folders under the temporary names that they are written under."""
    for name in names:
        for leftover in folder.glob(f".{name}[.-]*"):
            if leftover.is_dir():
                shutil.rmtree(leftover)
            else:
                leftover.unlink()


def _locked(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
