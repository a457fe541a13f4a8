"""Finds the files below the paths a user names, and never one outside of them."""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cartridge_core.corpus.document import Skipped
from cartridge_core.errors import CorpusError

UNREADABLE = "unreadable"
HIDDEN = "hidden"
OUTSIDE = "leads out of the named folder"
LINKED_FOLDER = "link to a folder that is read at its own place"
NOT_A_FILE = "not a regular file"


@dataclass(frozen=True)
class SourceFile:
    """A regular file inside a named folder, or named itself."""

    uri: str
    """Name of the named folder and path below it."""
    path: Path
    """The real file, with every link resolved."""


def find_source_files(path: Path) -> Iterator[SourceFile | Skipped]:
    """Everything below a path, sorted within each folder; what cannot be a source is named, not dropped.

    Hidden files and folders are skipped (a hidden folder is named once). Links are followed to files inside the named
    folder only.

    Args:
        path: A file or a folder. A link named by the user is followed: naming it is consent.

    Raises:
        CorpusError: The path does not exist.
    """
    try:
        root = path.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise CorpusError(f"{path} cannot be read: {_cause(error)}.", "Name an existing file or folder.") from error
    if not root.is_dir():
        yield _classify(path.name or root.name, root, root.parent)
        return
    denied: list[OSError] = []
    for folder, subfolders, names in os.walk(root, onerror=denied.append):
        here = Path(folder)
        kept = []
        for name in sorted(subfolders):
            if (skipped := _skip_folder(_uri(root, here / name), here / name, root)) is None:
                kept.append(name)
            else:
                yield skipped
        subfolders[:] = kept
        for name in sorted(names):
            uri = _uri(root, here / name)
            yield Skipped(uri, HIDDEN) if name.startswith(".") else _classify(uri, here / name, root)
    for denial in denied:
        yield Skipped(_uri(root, Path(denial.filename)), UNREADABLE)


def read_source_file(source: SourceFile) -> bytes:
    """The file's bytes.

    Raises:
        OSError: It cannot be opened, or became a link or something else than a regular file since it was found.
    """
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    handle = os.open(source.path, flags)
    with os.fdopen(handle, "rb") as stream:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(f"{source.path} is no regular file")
        return stream.read()


def _classify(uri: str, path: Path, root: Path) -> SourceFile | Skipped:
    try:
        real = path.resolve(strict=True)
        if not real.is_relative_to(root):
            return Skipped(uri, OUTSIDE)
        # A pipe or a device would block or never end.
        return SourceFile(uri, real) if stat.S_ISREG(real.stat().st_mode) else Skipped(uri, NOT_A_FILE)
    except (OSError, RuntimeError):  # RuntimeError: a loop of links, before Python 3.13
        return Skipped(uri, UNREADABLE)


def _skip_folder(uri: str, path: Path, root: Path) -> Skipped | None:
    if path.name.startswith("."):
        return Skipped(f"{uri}/", HIDDEN)
    if path.is_symlink():
        inside = path.resolve().is_relative_to(root)
        return Skipped(f"{uri}/", LINKED_FOLDER if inside else OUTSIDE)
    return None


def _uri(root: Path, path: Path) -> str:
    relative = (Path(root.name) / path.relative_to(root)).as_posix()
    # File names are bytes; one that is no UTF-8 must still be nameable in JSON.
    return os.fsencode(relative).decode("utf-8", "backslashreplace")


def _cause(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
