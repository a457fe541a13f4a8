"""A folder as an object store."""

import builtins
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from cartridge_core.atomic_file import atomic_file, intended
from cartridge_core.errors import StorageError
from cartridge_core.storage.store import Unfinished, checked_key, missing

_ATTEMPTS = 5


class LocalStore:
    """Objects are files below a folder. Keys never lead out of it, not even through a symbolic link in it.

    Args:
        root: The folder; made when the first object is written.
    """

    def __init__(self, root: Path | str) -> None:
        self._root = Path(root).expanduser().resolve()

    @property
    def root(self) -> str:
        """The absolute folder."""
        return str(self._root)

    def url(self, key: str) -> str:
        """The object's absolute path."""
        return str(self._path(key))

    def put_file(self, source: Path, key: str) -> None:
        """Store a file's bytes, replacing what was there."""
        target = self._path(key)
        with self._explained(f"store {source}"), source.open("rb") as stream, self._appearing(target) as out:
            shutil.copyfileobj(stream, out, 1 << 20)

    def get_file(self, key: str, target: Path) -> None:
        """Write an object to a file, which appears whole or not at all."""
        source = self._existing(key)
        with self._explained(f"read {key}"):
            target.parent.mkdir(parents=True, exist_ok=True)
            with source.open("rb") as stream, atomic_file(target) as out:
                shutil.copyfileobj(stream, out, 1 << 20)

    def read_bytes(self, key: str) -> bytes:
        """An object's bytes."""
        path = self._existing(key)
        with self._explained(f"read {key}"):
            return path.read_bytes()

    def write_bytes(self, key: str, data: bytes) -> None:
        """Store bytes, replacing what was there."""
        target = self._path(key)
        with self._explained(f"store {key}"), self._appearing(target) as out:
            out.write(data)

    def exists(self, key: str) -> bool:
        """Whether there is such an object."""
        return self._path(key).is_file()

    def size(self, key: str) -> int:
        """An object's bytes in number."""
        path = self._existing(key)
        with self._explained(f"read {key}"):
            return path.stat().st_size

    def modified_at(self, key: str) -> datetime:
        """When an object was written, UTC."""
        path = self._existing(key)
        with self._explained(f"read {key}"):
            return _moment(path.stat().st_mtime)

    def list(self, prefix: str = "") -> list[str]:
        """Sorted keys below the folder `prefix`."""
        folder = self._path(prefix) if prefix else self._root
        found = []
        for parent, folders, files in os.walk(folder):
            folders[:] = [name for name in folders if not name.startswith(".")]
            found += [Path(parent, name).relative_to(self._root).as_posix() for name in files if name[0] != "."]
        return sorted(found)

    def delete(self, key: str) -> None:
        """Remove an object and the folders that it leaves empty."""
        path = self._path(key)
        with self._explained(f"delete {key}"):
            path.unlink(missing_ok=True)
            for parent in path.parents:
                if parent == self._root:
                    break
                try:
                    parent.rmdir()
                except OSError:  # not empty, or gone with another writer's removal
                    break

    def unfinished(self, prefix: str = "") -> builtins.list[Unfinished]:
        """Temporary files of writers that are at work or were killed."""
        found = []
        for parent, folders, files in os.walk(self._path(prefix) if prefix else self._root):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in sorted(files):
                target = intended(name)
                if target is None:
                    continue
                path = Path(parent, name)
                try:
                    state = path.stat()
                except FileNotFoundError:  # the writer has just come to its end
                    continue
                place = Path(parent, target).relative_to(self._root).as_posix()
                mark = path.relative_to(self._root).as_posix()
                found.append(Unfinished(place, mark, _moment(state.st_mtime), state.st_size))
        return found

    def abandon(self, leftover: Unfinished) -> None:
        """Remove a writer's temporary file."""
        folder = self._path(leftover.key).parent
        if intended(Path(leftover.mark).name) is None or Path(leftover.mark).parent != Path(leftover.key).parent:
            raise StorageError(f"{leftover.mark!r} is no writer's leftover.", "Ask the store what is unfinished.")
        with self._explained(f"abandon {leftover.key}"):
            (folder / Path(leftover.mark).name).unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        path = self._root / checked_key(key)
        real = path.resolve()
        if not real.is_relative_to(self._root):
            raise StorageError(
                f"The key {key!r} leads out of {self._root} to {real}.", "Remove the symbolic link from the store."
            )
        return path

    def _existing(self, key: str) -> Path:
        path = self._path(key)
        if not path.is_file():
            raise missing(key, self.root)
        return path

    @contextmanager
    def _appearing(self, target: Path) -> Iterator[BinaryIO]:
        with ExitStack() as stack:
            for attempt in range(_ATTEMPTS):
                target.parent.mkdir(parents=True, exist_ok=True)
                try:
                    stream = stack.enter_context(atomic_file(target))
                    break
                except FileNotFoundError:  # a removal beside us took the folder that it found empty
                    if attempt == _ATTEMPTS - 1:
                        raise
            yield stream

    @contextmanager
    def _explained(self, action: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageError(
                f"Cannot {action}: {error.strerror or error}.",
                f"Check {self._root}, its permissions and its free space.",
            ) from error


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
