"""Files that a reader sees whole or not at all."""

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast


_TEMPORARY = re.compile(r"\.(.+)\.[a-z0-9_]{8}\.tmp")


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Write a file under a temporary name and move it to `path` when the block ends without an error.

    The content is on the disk before the move, so that neither a kill nor a power cut leaves half a file under `path`.

    Args:
        path: Where the file appears; its folder must exist. A file already there is replaced.

    Yields:
        A binary stream to write the content to.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as stream:
            yield cast(BinaryIO, stream)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.chmod(0o644)  # mkstemp gives 0600; products are shared between a writer and its readers
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def intended(name: str) -> str | None:
    """The file name that a temporary file of `atomic_file` was to become; None for any other file's name."""
    match = _TEMPORARY.fullmatch(name)
    return match[1] if match else None
