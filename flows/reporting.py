"""What a flow run shows: progress and tables as Prefect artifacts, and bars in the terminal it was started from."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import cast
from uuid import UUID

from prefect.artifacts import create_markdown_artifact, create_progress_artifact, update_progress_artifact
from prefect.context import FlowRunContext

from cartridge_core.progress import Progress, no_progress

SECONDS_BETWEEN_UPDATES = 2.0
"""An artifact update is a request to the server; a training step may take a tenth of a second."""

terminal: ContextVar[Progress] = ContextVar("terminal", default=no_progress)
"""Listener of the command that started the flow in this process."""


@contextmanager
def progress_artifact(key: str) -> Iterator[Progress]:
    """A listener that keeps the run's progress artifact up to date, and tells the terminal at once.

    Args:
        key: Name of the artifact: lower-case letters, digits and hyphens.
    """
    listener = terminal.get()
    artifact: UUID | None = None
    updated = 0.0

    def listen(done: int, total: int, what: str) -> None:
        nonlocal artifact, updated
        listener(done, total, what)
        now = time.monotonic()
        if FlowRunContext.get() is None or (now - updated < SECONDS_BETWEEN_UPDATES and done < total):
            return
        updated = now
        percent = 100.0 * done / max(total, 1)
        if artifact is None:
            artifact = cast(UUID, create_progress_artifact(percent, key=key, description=what))
        else:
            update_progress_artifact(artifact, percent, description=what)

    yield listen


def show_markdown(key: str, markdown: str, description: str) -> None:
    """Attach Markdown to the flow run; without a run there is nothing to attach it to."""
    if FlowRunContext.get() is not None:
        create_markdown_artifact(markdown, key=key, description=description)
