"""An evaluation report as a table: for a terminal (rich) and for MLflow's description (Markdown)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.table import Table

from cartridge_core.baselines import ICL, ICL_TRUNCATED, LORA, NEXT_TOKEN, NO_CONTEXT, SELF_STUDY

if TYPE_CHECKING:
    from cartridge_core.evaluation import ArmResult
    from cartridge_core.report.evaluation_report import EvaluationReport

TITLES = {
    NO_CONTEXT: "No context",
    ICL: "ICL, whole corpus",
    ICL_TRUNCATED: "ICL, truncated",
    NEXT_TOKEN: "Cartridge, next-token",
    SELF_STUDY: "Cartridge, self-study",
    LORA: "LoRA adapter",
}
"""What arms are called where people read."""

_ARM = "Arm"
_DASH = "–"


def title(arm_name: str) -> str:
    """The arm's name for people."""
    return TITLES.get(arm_name, f"Cartridge, {arm_name.replace('_', ' ')}")


def human_bytes(count: int) -> str:
    """Bytes in the largest binary unit below them, to three digits."""
    size, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.3g} {unit}"


def percent(share: float | None) -> str:
    """A share as a percentage with one decimal."""
    return _DASH if share is None else f"{100 * share:.1f}%"


def smaller(report: EvaluationReport, arm: ArmResult) -> str:
    """How many times less memory than the whole corpus in context an arm takes."""
    icl = report.find(ICL)
    if icl is None or not arm.memory_bytes or arm.name in (ICL, NO_CONTEXT):
        return _DASH
    return f"{icl.kv_bytes / arm.memory_bytes:.1f}×"


def _cells(report: EvaluationReport, arm: ArmResult) -> list[str]:
    low, high = (percent(end) for end in (arm.interval.low, arm.interval.high)) if arm.interval else ("", "")
    counts = [str(arm.unparsed), str(arm.errors)] if arm.fits else [_DASH, _DASH]
    return [
        title(arm.name),
        percent(arm.score) if arm.fits else "does not fit",
        f"{low.removesuffix('%')}–{high}" if arm.interval else _DASH,
        *counts,
        f"{arm.num_tokens:,}",
        human_bytes(arm.memory_bytes),
        smaller(report, arm),
    ]


def _table(report: EvaluationReport) -> tuple[list[str], list[list[str]]]:
    """Headings, and cells of each arm; errors are shown where there are any."""
    metric = report.metric[0].upper() + report.metric[1:]
    headings = [_ARM, metric, "95% interval", "Unparsed", "Errors", "Tokens", "KV memory", "vs ICL"]
    kept = [at for at, name in enumerate(headings) if name != "Errors" or any(arm.errors for arm in report.arms)]
    rows = [_cells(report, arm) for arm in report.arms]
    return [headings[at] for at in kept], [[row[at] for at in kept] for row in rows]


def stored(report: EvaluationReport) -> str:
    """What quantised Cartridges take on disk, in a sentence; empty where there is none."""
    arms = [arm for arm in report.arms if arm.stored_bytes is not None]
    if not arms:
        return ""
    sizes = ", ".join(f"{arm.name} {human_bytes(arm.stored_bytes or 0)}" for arm in arms)
    return f"On disk: {sizes}. Once loaded they take what the memory column says, in the base model's type."


def adapters(report: EvaluationReport) -> str:
    """What the memory column means for LoRA adapters, in a sentence; empty where there is none."""
    arms = [arm for arm in report.arms if arm.adapter_bytes is not None]
    if not arms:
        return ""
    sizes = ", ".join(f"{title(arm.name)} {human_bytes(arm.adapter_bytes or 0)}" for arm in arms)
    return f"Weights beside the model, counted in the memory column: {sizes}."


def notes(report: EvaluationReport) -> list[str]:
    """The sentences below a table."""
    return [note for note in (stored(report), adapters(report)) if note]


def rich_table(report: EvaluationReport) -> Table:
    """One row an arm, the Cartridge's own in bold; fits 80 columns."""
    headings, rows = _table(report)
    name = f"{report.corpus_name} · {report.base_model.id} · {report.benchmark} · {_asked(report):,} questions"
    table = Table(title=name, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.caption, table.caption_justify = "\n".join(notes(report)) or None, "left"
    for heading in headings:
        broken = "Un-\nparsed" if heading == "Unparsed" else heading.replace(" ", "\n", 1)
        table.add_column(broken, justify="left" if heading == _ARM else "right", no_wrap=True)
    for arm, cells in zip(report.arms, rows, strict=True):
        style = "bold green" if arm.name == report.cartridge_arm else ("dim" if not arm.fits else "")
        table.add_row(*cells, style=style)
    return table


def _asked(report: EvaluationReport) -> int:
    return max(arm.n for arm in report.arms)


def verdict(report: EvaluationReport) -> str:
    """One sentence: what the Cartridge keeps of ICL's quality, and in how much of its memory."""
    own, icl, comparison = report.cartridge, report.find(ICL), report.comparison(ICL)
    if icl is None:
        return f"The Cartridge scores {percent(own.score)} in {human_bytes(own.kv_bytes)}; ICL was not graded."
    if own.score is None:
        return "The Cartridge leaves no room for the questions in the model's window."
    memory = (
        f"{own.num_tokens:,} tokens ({human_bytes(own.kv_bytes)}) where ICL needs {icl.num_tokens:,} "
        f"({human_bytes(icl.kv_bytes)})"
    )
    if comparison is None:
        return f"The Cartridge scores {percent(own.score)} with {memory}, which does not fit into the model's window."
    if comparison.ratio is None:
        return f"The Cartridge scores {percent(own.score)} with {memory}; ICL scores {percent(icl.score)}."
    spread = comparison.ratio_interval
    sure = f" (95% interval {percent(spread.low)} to {percent(spread.high)})" if spread else ""
    return f"The Cartridge keeps {percent(comparison.ratio)}{sure} of ICL's {report.metric} with {memory}."


def markdown(report: EvaluationReport) -> str:
    """The verdict, a table with one row an arm, and what was graded."""
    headings, rows = _table(report)
    lines = [verdict(report), "", "| " + " | ".join(headings) + " |", "|:--" + "|--:" * (len(headings) - 1) + "|"]
    for arm, row in zip(report.arms, rows, strict=True):
        cells = [cell.replace("|", "\\|") for cell in row]
        if arm.name == report.cartridge_arm:
            cells = [f"**{cell}**" for cell in cells]
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        *(line for note in notes(report) for line in (note, "")),
        f"Base model `{report.base_model.id}` at `{report.base_model.revision}`, corpus `{report.corpus_name}` "
        f"(`{report.corpus_digest[:12]}`), {_asked(report):,} questions (`{report.questions_digest[:12]}`), "
        f"Cartridge `{report.cartridge_digest[:12]}`, report `{report.digest[:12]}`. "
        "Unparsed replies and errors count as wrong.",
    ]
    return "\n".join(lines) + "\n"
