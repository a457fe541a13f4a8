"""Proofs: what a long measurement was asked for, what it saw, and on which machine and commit."""

import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue
from rich.console import Console
from rich.table import Table

from cartridge_core.atomic_file import atomic_file
from cartridge_core.errors import EvaluationError

FOLDER = Path("build/reports")
"""Where proofs go, below the current folder."""


class Bound(BaseModel):
    """What is asked of one figure."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    at_least: float | None = None
    """Smallest value that will do."""
    at_most: float | None = None
    """Largest value that will do."""

    def holds(self, figure: float | None) -> bool:
        """Whether a figure is within; one that was not measured is not."""
        if figure is None or math.isnan(figure):
            return False
        return (self.at_least is None or figure >= self.at_least) and (self.at_most is None or figure <= self.at_most)

    def __str__(self) -> str:
        parts = (("≥", self.at_least), ("≤", self.at_most))
        return ", ".join(f"{sign} {number(value)}" for sign, value in parts if value is not None)


class Proof(BaseModel):
    """One run of a measuring target."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    target: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    """Name of the target, and of the file."""
    command: str
    """What was run."""
    commit: str
    """Commit of the checkout, with `-dirty` behind it where files were changed since; `unknown` without a checkout."""
    hardware: str
    """Processors, memory and accelerators of the machine."""
    seconds: float
    """Wall time of the run."""
    figures: dict[str, float | None]
    """What was measured; None where a value is not a finite number."""
    asked: dict[str, Bound]
    """What was asked, by the figures' names."""
    ok: bool
    """Whether every asked figure was measured and is within its bound."""
    extra: dict[str, JsonValue] = {}
    """What stands beside the figures: versions, digests, seconds by stage."""

    def failures(self) -> tuple[str, ...]:
        """Names of the asked figures that are missing or out of bounds."""
        return tuple(name for name, bound in self.asked.items() if not bound.holds(self.figures.get(name)))

    def table(self) -> Table:
        """Asked against seen, one row a figure."""
        verdict = "[bold green]ok[/]" if self.ok else "[bold red]not ok[/]"
        table = Table(title=f"{self.target} · {self.seconds:,.0f} s · {verdict}", title_justify="left")
        table.add_column("Figure")
        for column in ("Asked", "Seen"):
            table.add_column(column, justify="right")
        table.add_column("")
        for name in [*self.figures, *(name for name in self.asked if name not in self.figures)]:
            bound, figure = self.asked.get(name), self.figures.get(name)
            mark = "" if bound is None else "[green]✓[/]" if bound.holds(figure) else "[bold red]✗[/]"
            table.add_row(name, str(bound or ""), "not measured" if figure is None else number(figure), mark)
        return table


def write_proof(
    target: str,
    command: str,
    figures: Mapping[str, float],
    asked: Mapping[str, Mapping[str, float] | Bound],
    started: float,
    extra: Mapping[str, JsonValue] | None = None,
    folder: str | Path = FOLDER,
    console: Console | None = None,
) -> Proof:
    """Write `<folder>/<target>.json` and print what was asked against what was seen.

    Args:
        target: Name of the make target.
        command: What was run.
        figures: Name to measured number.
        asked: Name to `{"at_least": x}` and/or `{"at_most": y}`.
        started: `time.time()` when the run began.
        extra: Anything else to keep beside the figures.
        folder: Where proofs are kept.
        console: Where to print; standard output where nobody says.

    Returns:
        The proof; its `ok` decides the command's exit code.

    Raises:
        EvaluationError: A bound asks for nothing.
    """
    seconds = time.time() - started
    bounds = {name: bound if isinstance(bound, Bound) else Bound(**bound) for name, bound in asked.items()}
    if empty := [name for name, bound in bounds.items() if bound.at_least is None and bound.at_most is None]:
        raise EvaluationError(f"Nothing is asked of {', '.join(empty)}.", "Say at_least or at_most.")
    # JSON has no infinity and no NaN; a figure that is none of the numbers was not measured.
    finite = {name: float(figure) if math.isfinite(figure) else None for name, figure in figures.items()}
    proof = Proof(
        target=target,
        command=command,
        commit=commit(),
        hardware=hardware(),
        seconds=round(seconds, 3),
        figures=finite,
        asked=bounds,
        ok=all(bound.holds(finite.get(name)) for name, bound in bounds.items()),
        extra=dict(extra or {}),
    )
    path = Path(folder) / f"{target}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as stream:
        stream.write(_json(proof).encode())
    console = console or Console()
    console.print(proof.table())
    console.print(f"Written to {path}", style="dim", highlight=False)
    return proof


def number(value: float) -> str:
    """A number as people write it: whole ones whole, others to four digits."""
    return f"{value:,.0f}" if value == int(value) or abs(value) >= 1000 else f"{value:.4g}"


def commit() -> str:
    """The commit of the checkout that this code runs from, marked `-dirty` where tracked files differ from it."""
    git = ("git", "-C", str(Path(__file__).parent))
    head = _output(*git, "rev-parse", "--verify", "HEAD")
    # An installed copy may lie in somebody else's checkout; only one that tracks this file says what runs.
    if not head or not _output(*git, "ls-files", Path(__file__).name):
        return "unknown"
    return f"{head}-dirty" if _output(*git, "status", "--porcelain", "--untracked-files=no") else head


def hardware() -> str:
    """What this process may use: processors, memory, accelerators."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parts = [f"{usable} x {_processor()}"]
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        parts.append(f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB memory")
    # Asked of torch only where it is loaded: a proof must not cost its import.
    torch: Any = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        parts += [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return ", ".join(parts)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def _json(proof: Proof) -> str:
    content = proof.model_dump(mode="json")
    content["asked"] = {name: bound.model_dump(exclude_none=True) for name, bound in proof.asked.items()}
    if not proof.extra:
        del content["extra"]
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
