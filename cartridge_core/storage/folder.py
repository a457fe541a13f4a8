"""Whole folders in an object store, committed by one file that goes last."""

from collections.abc import Sequence
from pathlib import Path

from cartridge_core.errors import StorageError
from cartridge_core.storage.store import ObjectStore


def put_folder(store: ObjectStore, folder: Path, prefix: str, names: Sequence[str]) -> int:
    """Store files of a folder in the order given, so that the last one commits the others.

    Args:
        store: Where to.
        folder: Where from.
        prefix: Key that the files' names are put below.
        names: Files by name; the last is the commit marker that a reader looks for.

    Returns:
        Bytes of the files.

    Raises:
        StorageError: A file is missing or the store refuses.
    """
    for name in names:
        store.put_file(folder / name, f"{prefix}/{name}")
    return sum((folder / name).stat().st_size for name in names)


def get_folder(store: ObjectStore, prefix: str, folder: Path, names: Sequence[str]) -> Path:
    """Fetch files that `put_folder` stored, the commit marker last here too.

    Raises:
        StorageError: Something is missing.
    """
    if not store.exists(f"{prefix}/{names[-1]}"):
        raise StorageError(f"{store.root} holds nothing complete at {prefix!r}.", "Store it again, or check the root.")
    for name in names:
        store.get_file(f"{prefix}/{name}", folder / name)
    return folder


def delete_folder(store: ObjectStore, prefix: str, marker: str) -> tuple[str, ...]:
    """Remove everything below a prefix, the commit marker first: what is half removed is no longer trusted.

    What writers have begun there goes, too, and one that is still at work fails.

    Returns:
        The keys that were there.
    """
    for left in store.unfinished(prefix):
        store.abandon(left)
    keys = store.list(prefix)
    first = f"{prefix}/{marker}"
    for key in sorted(keys, key=lambda key: key != first):
        store.delete(key)
    return tuple(keys)
