"""What the command line says: results on standard output, progress and errors on standard error."""

import getpass
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from cartridge_core.progress import Progress as Listener

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
"""The `--json` switch that every command has."""


def output() -> Console:
    """Standard output. Made when it is needed, so that a redirected stream is the one written to."""
    return Console(file=sys.stdout, soft_wrap=not sys.stdout.isatty(), highlight=False)


def messages() -> Console:
    """Standard error."""
    return Console(file=sys.stderr, soft_wrap=True, highlight=False)


def say_error(problem: str, remedy: str = "") -> None:
    """One readable sentence about what went wrong, and the remedy behind it."""
    messages().print(f"[bold red]Error:[/] {escape(problem)} {escape(remedy)}".rstrip())


def show(value: Mapping[str, Any] | Sequence[Any], as_json: bool, *human: RenderableType) -> None:
    """Print a result: the value as JSON, or what is meant for people."""
    if as_json:
        sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")
        return
    for item in human:
        output().print(item)


def facts(title: str, rows: Mapping[str, Any]) -> Table:
    """A two-column table of names and values; rows without a value are left out."""
    table = Table(title=title, title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        if value is not None:
            table.add_row(name, escape(str(value)))
    return table


def listing(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Table:
    """A table with a head line."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*("" if value is None else escape(str(value)) for value in row))
    return table


@contextmanager
def progress_bars() -> Iterator[Listener]:
    """A progress listener that draws one bar for each kind of work, where standard error is a terminal."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=messages(), disable=not sys.stderr.isatty()) as bars:
        current: TaskID | None = None
        shown = (0, 0)

        def listen(done: int, total: int, what: str) -> None:
            nonlocal current, shown
            # A shorter way gone or another length means that new work has begun; `what` alone may carry a running loss.
            if current is None or done < shown[0] or total != shown[1]:
                current = bars.add_task(what, total=total)
            bars.update(current, completed=done, description=what)
            shown = (done, total)

        yield listen


def actor() -> str:
    """Who asks, for the record; nobody where the system knows no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return ""
