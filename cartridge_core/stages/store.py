"""The digest store: the one cache of finished work.

A stage's product lives in `{root}/{stage}/{key}/`, where the key is the digest of everything the product depends on.
The marker `stage.json` is written last, so its existence means that the product is complete; a folder without one is
unfinished work, which a resumable stage (study) picks up again.
"""

import errno
import fcntl
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cartridge_core import __version__
from cartridge_core.atomic_file import atomic_file
from cartridge_core.digest import digest_of
from cartridge_core.errors import ArtifactError, StorageError

MARKER = "stage.json"

RECIPES: dict[str, int] = {
    "ingest": 1,
    "study": 1,
    "start": 1,
    "fit": 1,
    "adapter": 1,
    "quiz": 1,
    "arm": 1,
    "grade": 1,
    "composition": 1,
}
"""Version of each stage's algorithm. Raise one when the same inputs should give another product."""

Facts = dict[str, Any]
"""What a stage says about its product; JSON values only."""


@dataclass(frozen=True)
class Finished:
    """A finished product in the store."""

    stage: str
    """Name of the stage that made it."""
    key: str
    """Digest of the stage, its recipe version and its inputs."""
    directory: Path
    """Folder that holds the product."""
    inputs: Facts
    """What the product was made from."""
    facts: Facts
    """What the stage says about it."""
    seconds: float
    """How long the work took when it was done."""
    finished_at: str
    """UTC time of completion, ISO 8601."""
    cached: bool
    """Whether it was found rather than made by this call."""


class StageStore:
    """Finds finished work by what it depends on, and makes it where there is none.

    Args:
        root: Folder of the store; created when the first product is made.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def key(self, stage: str, inputs: Mapping[str, Any]) -> str:
        """Digest that addresses the product of `stage` for these inputs (JSON values only)."""
        return digest_of({"stage": stage, "recipe": RECIPES[stage], "inputs": dict(inputs)})

    def directory(self, stage: str, key: str) -> Path:
        """Folder of a product, finished or not."""
        return self.root / stage / key

    def find(self, stage: str, inputs: Mapping[str, Any]) -> Finished | None:
        """The finished product for these inputs, or None."""
        return self._read(self.directory(stage, self.key(stage, inputs)))

    def finished(self, stage: str) -> list[Finished]:
        """All finished products of a stage, oldest first."""
        folder = self.root / stage
        products = (self._read(path) for path in folder.iterdir()) if folder.is_dir() else iter(())
        return sorted((p for p in products if p is not None), key=lambda p: (p.finished_at, p.key))

    def run(
        self,
        stage: str,
        inputs: Mapping[str, Any],
        work: Callable[[Path], Facts],
        resumable: bool = False,
    ) -> Finished:
        """Return the finished product for these inputs; do the work first where there is none.

        Args:
            stage: A name in `RECIPES`.
            inputs: Everything that the product depends on, as JSON values.
            work: Fills the folder it is given and returns the facts to keep.
            resumable: Keep what an interrupted run left in the folder; otherwise the work starts on an empty one.

        Two processes asked for the same product do it once: the second waits for the first one's lock and finds it.

        Raises:
            StorageError: The disk is full.
        """
        if found := self.find(stage, inputs):
            return found
        key = self.key(stage, inputs)
        directory = self.directory(stage, key)
        with _told_if_full(self.root), _owned(directory):
            if found := self._read(directory):
                return found
            if not resumable:
                shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir(parents=True, exist_ok=True)
            started = time.monotonic()
            facts = work(directory)
            marker = {
                "stage": stage,
                "key": key,
                "recipe": RECIPES[stage],
                "software": __version__,
                "inputs": dict(inputs),
                "facts": facts,
                "seconds": round(time.monotonic() - started, 3),
                "finished_at": datetime.now(UTC).isoformat(),
            }
            write_json(directory / MARKER, marker)
        return _finished(directory, marker, cached=False)

    def unfinished(self) -> list[Path]:
        """Folders of work that was begun and is not finished: it goes on somewhere, or it was interrupted."""
        folders = (path for stage in RECIPES for path in sorted((self.root / stage).glob("[!.]*")) if path.is_dir())
        return [folder for folder in folders if not (folder / MARKER).exists()]

    def discard(self, directory: Path) -> bool:
        """Remove unfinished work, unless somebody works on it or it is finished by now.

        Returns:
            Whether it is gone.
        """
        with _owned(directory, wait=False) as mine:
            if not mine or (directory / MARKER).exists():
                return False
            shutil.rmtree(directory, ignore_errors=True)
        return not directory.exists()

    def forget(self, product: Finished) -> None:
        """Remove a product. Its marker goes first, so that a reader never trusts half of it."""
        (product.directory / MARKER).unlink(missing_ok=True)
        shutil.rmtree(product.directory, ignore_errors=True)

    def _read(self, directory: Path) -> Finished | None:
        marker = directory / MARKER
        try:
            record = json.loads(marker.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except NotADirectoryError:
            return None
        except json.JSONDecodeError as error:
            raise ArtifactError(
                f"{marker} is not JSON: {error}.", f"Remove {directory} and run the stage again."
            ) from None
        return _finished(directory, record, cached=True)


def _finished(directory: Path, record: Facts, cached: bool) -> Finished:
    names = ("stage", "key", "inputs", "facts", "seconds", "finished_at")
    return Finished(directory=directory, cached=cached, **{name: record[name] for name in names})


def write_json(path: Path, value: Facts) -> None:
    """Write JSON so that a reader sees the whole file or none."""
    with atomic_file(path) as stream:
        stream.write(json.dumps(value, indent=2, sort_keys=True, allow_nan=False).encode() + b"\n")


@contextmanager
def _told_if_full(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise StorageError(
            f"There is no space left to write to in {root}.",
            "Make room (`cartridge gc` says what nobody needs) and run it again: what was finished is kept.",
        ) from error


@contextmanager
def _owned(directory: Path, wait: bool = True) -> Iterator[bool]:
    """Hold the product's lock; the kernel gives it back when the owner dies, so a kill leaves nothing to clean up.

    Yields:
        Whether it is held; always so where `wait` is on.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    with (directory.parent / f".{directory.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
