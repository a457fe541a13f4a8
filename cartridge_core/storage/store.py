"""What an object store is, and what a key may be."""

import builtins
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

from cartridge_core.errors import StorageError

_MAX_KEY_BYTES = 900
_MAX_PART_BYTES = 200


@dataclass(frozen=True)
class Unfinished:
    """What a writer that was killed left behind: no object, but room that it takes."""

    key: str
    """The object that it would have become."""
    mark: str
    """What the store itself calls it."""
    started_at: datetime
    """When it was last known to be alive, UTC."""
    size: int
    """Bytes that it takes, as far as the store says."""


class ObjectStore(Protocol):
    """Named byte strings under one root. Keys are relative POSIX paths; an object appears whole or not at all.

    Every method raises `StorageError` for a key that `checked_key` refuses and for a store that cannot be reached.
    """

    @property
    def root(self) -> str:
        """Where the store is: an absolute folder, or `s3://bucket/prefix`."""

    def url(self, key: str) -> str:
        """The full address of an object."""

    def put_file(self, source: Path, key: str) -> None:
        """Store a file's bytes, replacing what was there."""

    def get_file(self, key: str, target: Path) -> None:
        """Write an object to a file, which appears whole or not at all; a missing object is a StorageError."""

    def read_bytes(self, key: str) -> bytes:
        """An object's bytes; a missing object is a StorageError."""

    def write_bytes(self, key: str, data: bytes) -> None:
        """Store bytes, replacing what was there."""

    def exists(self, key: str) -> bool:
        """Whether there is such an object."""

    def size(self, key: str) -> int:
        """An object's bytes in number; a missing object is a StorageError."""

    def modified_at(self, key: str) -> datetime:
        """When an object was written, UTC; a missing object is a StorageError."""

    def list(self, prefix: str = "") -> list[str]:
        """Sorted keys below the folder `prefix`; all keys for the empty prefix."""

    def delete(self, key: str) -> None:
        """Remove an object; one that is not there is no error, so that a removal can be repeated."""

    def unfinished(self, prefix: str = "") -> builtins.list[Unfinished]:
        """What writers that are at work, or were killed, have begun below the folder `prefix`."""

    def abandon(self, leftover: Unfinished) -> None:
        """Give the room of an unfinished object back; one that is gone is no error."""


def checked_key(key: str) -> str:
    """A key that names something below the root in every store.

    Raises:
        StorageError: It is empty, absolute, too long, or has a part that is empty, begins with a dot (`..` among
            them) or holds a backslash or a control character.
    """
    parts = key.split("/")
    unprintable = any(char == "\\" or not char.isprintable() for char in key)
    if unprintable or any(not part or part.startswith(".") for part in parts):
        raise StorageError(
            f"{key!r} cannot be the key of an object.",
            "Use a relative path with forward slashes; no part may be empty or begin with a dot.",
        )
    if len(key.encode()) > _MAX_KEY_BYTES or any(len(part.encode()) > _MAX_PART_BYTES for part in parts):
        raise StorageError(
            f"The key {key[:60]!r}... is too long.",
            f"Stay within {_MAX_KEY_BYTES} bytes in all and {_MAX_PART_BYTES} between slashes.",
        )
    return key


def missing(key: str, root: str) -> StorageError:
    """The error for an object that is not there."""
    return StorageError(f"There is no object {key!r} in {root}.", "Check the artifact root, or build the object again.")
