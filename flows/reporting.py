"""What a flow run shows: artifacts in Prefect, and bars in the terminal that it was started from."""

import base64
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, cast
from uuid import UUID

from prefect.artifacts import (
    create_image_artifact,
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
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


def show_picture(key: str, picture: Path, description: str) -> None:
    """Attach a PNG file to the flow run. It travels inside the artifact: who looks need not see the worker's disk."""
    if FlowRunContext.get() is not None:
        data = base64.b64encode(picture.read_bytes()).decode()
        create_image_artifact(f"data:image/png;base64,{data}", key=key, description=description)


def show_link(key: str, link: str, text: str, description: str) -> None:
    """Attach a link to the flow run."""
    if FlowRunContext.get() is not None:
        create_link_artifact(link, link_text=text, key=key, description=description)


def result_key(flow: str) -> str:
    """Key of the artifact that holds a flow's result."""
    return f"{flow}-result"


def result_table(facts: dict[str, Any]) -> list[dict[str, str]]:
    """A result as rows of a table, values in JSON: a row as wide as all of them could not be read."""
    return [{"name": name, "value": json.dumps(value, ensure_ascii=False)} for name, value in facts.items()]


def result_of(table: list[dict[str, str]]) -> dict[str, Any]:
    """What `result_table` was made of."""
    return {row["name"]: json.loads(row["value"]) for row in table}


def tell_result(flow: str, facts: dict[str, Any]) -> dict[str, Any]:
    """Show a flow's result as a table, where a caller on another machine reads it; returns the result."""
    if FlowRunContext.get() is not None:
        create_table_artifact(result_table(facts), key=result_key(flow), description=f"What {flow} made")
    return facts
