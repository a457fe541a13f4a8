"""Score against KV memory: one point an arm with its 95% interval, as a PNG."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox, TextArea, VPacker
from matplotlib.ticker import FixedLocator, FuncFormatter, MultipleLocator, NullLocator

from cartridge_core.atomic_file import atomic_file
from cartridge_core.baselines import ICL, ICL_TRUNCATED, LORA, NEXT_TOKEN, NO_CONTEXT
from cartridge_core.report.label_placement import Anchor, Box, needs_leader, place_labels
from cartridge_core.report.tables import human_bytes, percent, title

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from cartridge_core.evaluation import ArmResult
    from cartridge_core.report.evaluation_report import EvaluationReport

_INK, _MUTED, _GRID = "#1b2733", "#5d6b78", "#e4e8ec"
_ACCENT = "#0a7d6e"
_STYLES = {
    NO_CONTEXT: ("#6b7680", "D"),
    ICL: ("#26477d", "s"),
    ICL_TRUNCATED: ("#5f7fb5", "s"),
    NEXT_TOKEN: ("#c46a12", "o"),
    LORA: ("#a8324a", "^"),
}
_OTHER = ("#8c5fb0", "o")
_DPI = 200
_ROOM = 0.16
"""Share of the axis left free at either side, where labels go."""


class _Point(NamedTuple):
    arm: ArmResult
    x: float
    colour: str
    marker: str
    own: bool


def plot_report(report: EvaluationReport, path: Path) -> Path:
    """Draw the report into `path`, all of it or (if interrupted) nothing; returns the path."""
    figure = Figure(figsize=(9.0, 5.6), dpi=_DPI, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((0.085, 0.12, 0.885, 0.66))
    points = _points(report)
    _draw_axes(axes, points)
    for point in points:
        _draw_point(axes, point)
    _draw_titles(figure, axes, report)
    _draw_memory_ratio(axes, report)
    _draw_labels(figure, canvas, axes, points)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as stream:
        figure.savefig(stream, format="png", dpi=_DPI, metadata={"Software": None})
    return path


def _points(report: EvaluationReport) -> list[_Point]:
    """Arms with their place on the x axis; those of like memory stand a little apart where their intervals meet."""
    positive = [arm.memory_bytes for arm in report.arms if arm.memory_bytes] or [1]
    # A logarithmic axis has no zero: an arm without any cache stands left of all others, under a tick of its own.
    empty = min(positive) / 4
    span = math.log(4 * max(positive) / min(positive))
    points: list[_Point] = []
    # The Cartridge goes first, so that it is others that make way.
    for arm in sorted(report.arms, key=lambda arm: arm.name != report.cartridge_arm):
        x = float(arm.memory_bytes or empty)
        while any(_touch(arm, x, other, 0.026 * span) for other in points):
            x *= math.exp(0.028 * span)
        own = arm.name == report.cartridge_arm
        colour, marker = (_ACCENT, "o") if own else _STYLES.get(arm.name, _OTHER)
        points.append(_Point(arm, x, colour, marker, own))
    return points


def _touch(arm: ArmResult, x: float, other: _Point, near: float) -> bool:
    if arm.interval is None or other.arm.interval is None:
        return False
    return abs(math.log(x / other.x)) < near and arm.interval.overlaps(other.arm.interval)


def _draw_axes(axes: Axes, points: list[_Point]) -> None:
    low, high = (math.log2(end) for end in (min(p.x for p in points), max(p.x for p in points)))
    room = max(1.0, (high - low) * _ROOM / (1 - 2 * _ROOM))
    axes.set_xscale("log", base=2)
    axes.set_xlim(2 ** (low - room), 2 ** (high + room))
    axes.set_ylim(-0.05, 1.05)
    step = max(1, math.ceil((high - low + 2 * room) / 8))
    empty = min((point.x for point in points if not point.arm.memory_bytes), default=None)
    first = math.ceil(low - room if empty is None else low + 1)
    ticks = [2.0**power for power in range(first, math.floor(high + room) + 1) if power % step == 0]
    if empty is not None:
        ticks.insert(0, empty)
        gap = {"facecolor": "white", "edgecolor": "none", "boxstyle": "square,pad=0.05"}
        across = axes.get_xaxis_transform()
        axes.text(empty * 2, 0, "//", transform=across, color=_MUTED, ha="center", va="center", fontsize=9, bbox=gap)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda tick, _: human_bytes(0 if tick == empty else round(tick))))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(MultipleLocator(0.2))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f}%"))
    axes.grid(True, axis="y", color=_GRID, linewidth=0.9)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=9.5, labelcolor=_MUTED, pad=6)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#b9c1c9")
    weights = ", or of an adapter's weights" if any(p.arm.adapter_bytes for p in points) else ""
    label = f"Memory of keys and values in front of the question{weights} (log scale)"
    axes.set_xlabel(label, fontsize=10, color=_MUTED, labelpad=8)


def _draw_point(axes: Axes, point: _Point) -> None:
    arm = point.arm
    if arm.score is None or arm.interval is None:
        axes.axvline(point.x, color=point.colour, linewidth=1.2, linestyle=(0, (4, 3)), alpha=0.55, zorder=1)
        return
    axes.errorbar(
        [point.x],
        [arm.score],
        # The score lies inside its interval but for rounding.
        yerr=[[max(0.0, arm.score - arm.interval.low)], [max(0.0, arm.interval.high - arm.score)]],
        fmt=point.marker,
        markersize=12 if point.own else 9,
        color=point.colour,
        markeredgecolor="white",
        markeredgewidth=1.3,
        elinewidth=2.2 if point.own else 1.6,
        capsize=5,
        capthick=2.2 if point.own else 1.6,
        zorder=5 if point.own else 4,
    )


def _draw_titles(figure: Figure, axes: Axes, report: EvaluationReport) -> None:
    left = axes.get_position().x0
    metric = report.metric[0].upper() + report.metric[1:]
    heading = f"{metric} against memory: corpus “{report.corpus_name}”"
    detail = f"{report.base_model.id}, {report.cartridge.n:,} questions, whiskers are 95% intervals"
    figure.text(left, 0.945, heading, fontsize=14.5, fontweight="bold", color=_INK, va="center")
    figure.text(left, 0.897, detail, fontsize=10, color=_MUTED, va="center")


def _draw_memory_ratio(axes: Axes, report: EvaluationReport) -> None:
    """A bracket above the plot from the Cartridge to the whole corpus in context."""
    own, icl = report.cartridge, report.find(ICL)
    if icl is None or not own.kv_bytes or icl.kv_bytes <= 1.5 * own.kv_bytes:
        return
    above = axes.get_xaxis_transform()
    axes.annotate(
        "",
        xy=(own.kv_bytes, 1.035),
        xytext=(icl.kv_bytes, 1.035),
        xycoords=above,
        textcoords=above,
        arrowprops={
            "arrowstyle": "|-|, widthA=0.35, widthB=0.35",
            "color": _ACCENT,
            "linewidth": 1.3,
            "shrinkA": 0,
            "shrinkB": 0,
        },
        annotation_clip=False,
    )
    axes.text(
        math.sqrt(own.kv_bytes * icl.kv_bytes),
        1.052,
        f"{icl.kv_bytes / own.kv_bytes:.1f}× less memory",
        transform=above,
        fontsize=10.5,
        fontweight="bold",
        color=_ACCENT,
        ha="center",
        va="bottom",
    )


def _draw_labels(figure: Figure, canvas: FigureCanvasAgg, axes: Axes, points: list[_Point]) -> None:
    """Labels as close to their points as they can be without covering anything."""
    canvas.draw()
    renderer: Any = canvas.get_renderer()
    pixel = figure.dpi / 72
    packs, anchors = [], []
    for point in points:
        pack = VPacker(children=_label_lines(point), align="left", pad=0, sep=2)
        pack.set_figure(figure)
        extent = pack.get_window_extent(renderer)
        packs.append(pack)
        x, y = axes.transData.transform((point.x, _height(point)))
        anchors.append(Anchor(x, y, extent.width, extent.height, _marks(axes, point, x, y, 7 * pixel)))
    window = axes.get_window_extent(renderer)
    frame = Box(window.x0, window.y0, window.x1, window.y1).grown(-2 * pixel)
    boxes = place_labels(anchors, frame, gap=9 * pixel, margin=3 * pixel)
    for point, anchor, pack, box in zip(points, anchors, packs, boxes, strict=True):
        if needs_leader(anchor, box, 14 * pixel):
            line = {"arrowstyle": "-", "color": point.colour, "linewidth": 0.8, "shrinkA": 2, "shrinkB": 7}
            axes.annotate(
                "",
                xy=(anchor.x, anchor.y),
                xytext=box.nearest(anchor.x, anchor.y),
                xycoords="figure pixels",
                textcoords="figure pixels",
                arrowprops=line,
            )
        # Text reads as belonging to its point when it is flush with the side that faces it.
        pack.align = "right" if box.right < anchor.x else "left" if box.left > anchor.x else "center"
        patch = {"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.85}
        corner = (box.left, box.bottom)
        axes.add_artist(
            AnnotationBbox(
                pack, corner, xycoords="figure pixels", box_alignment=(0, 0), bboxprops=patch, pad=0, zorder=3
            )
        )


def _label_lines(point: _Point) -> list[Artist]:
    arm = point.arm
    result = percent(arm.score) if arm.fits else "does not fit"
    tokens = f"{arm.num_tokens:,} token{'' if arm.num_tokens == 1 else 's'}"
    if arm.adapter_bytes is not None:
        tokens = "weights"
    detail = f"{result} · {tokens} · {human_bytes(arm.memory_bytes)}"
    heading = {"fontsize": 11.5 if point.own else 10.5, "fontweight": "bold", "color": point.colour}
    return [TextArea(title(arm.name), textprops=heading), TextArea(detail, textprops={"fontsize": 9, "color": _MUTED})]


def _height(point: _Point) -> float:
    """Where a point is labelled: at its score, or halfway up the line of an arm without one."""
    return 0.5 if point.arm.score is None else point.arm.score


def _marks(axes: Axes, point: _Point, x: float, y: float, radius: float) -> tuple[Box, ...]:
    if point.arm.interval is None:
        bottom, top = (axes.transAxes.transform((0, end))[1] for end in (0, 1))
        return (Box(x - 2, bottom, x + 2, top),)
    ends = (point.arm.interval.low, point.arm.interval.high)
    low, high = (axes.transData.transform((point.x, end))[1] for end in ends)
    return (Box(x - radius, min(low - 2, y - radius), x + radius, max(high + 2, y + radius)),)
