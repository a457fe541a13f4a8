"""The course of a training run: numbers on disk, and a picture."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cartridge_core.atomic_file import atomic_file


@dataclass(frozen=True)
class TrainPoint:
    """One optimizer step."""

    step: int
    """Steps taken, this one included."""
    learning_rate: float
    """With which it was taken."""
    loss: float
    """Cross-entropy of the batch before the step, nats a predicted token."""
    kl: float
    """The same less the teacher's entropy."""
    grad_norm: float
    """Of all keys and values, before clipping."""
    tokens: int
    """Predicted tokens of the batch."""
    seconds: float
    """Since training began."""
    unfinished: int | None = None
    """Answers of an on-policy batch that did not end within their limit; None for the study's own answers."""
    state_distance: float | None = None
    """Of the hidden states from the teacher's, the mean over predicted tokens; None where they are not matched."""


@dataclass(frozen=True)
class HeldOutPoint:
    """One look at the held-out examples."""

    step: int
    """Steps taken before it."""
    loss: float
    """Cross-entropy, nats a predicted token."""
    kl: float
    """The same less the teacher's entropy."""
    seconds: float
    """Since training began."""


class LossCurve:
    """All points of a run, in order.

    Attributes:
        train: One for each step.
        held_out: One for each look, the first before any step.
    """

    def __init__(self) -> None:
        self.train: list[TrainPoint] = []
        self.held_out: list[HeldOutPoint] = []

    @property
    def best(self) -> HeldOutPoint:
        """The look with the smallest held-out loss, the earliest of equals."""
        return min(self.held_out, key=lambda point: point.loss)

    @property
    def num_unfinished(self) -> int | None:
        """Answers of the on-policy phase that did not end within their limit; None before there was such a step."""
        counts = [point.unfinished for point in self.train if point.unfinished is not None]
        return sum(counts) if counts else None

    def save(self, path: Path) -> None:
        """Write JSON lines: `{"kind": "train" | "held_out", "step": ..., "loss": ..., ...}`, by step."""
        rows: list[dict[str, Any]] = [{"kind": "held_out", **asdict(point)} for point in self.held_out]
        rows += [{"kind": "train", **asdict(point)} for point in self.train]
        rows.sort(key=lambda row: (row["step"], row["kind"] == "held_out"))
        with atomic_file(Path(path)) as stream:
            stream.write("".join(json.dumps(row) + "\n" for row in rows).encode())

    @classmethod
    def load(cls, path: Path) -> "LossCurve":
        """Read what `save` wrote."""
        curve = cls()
        for line in Path(path).read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            if row.pop("kind") == "train":
                curve.train.append(TrainPoint(**row))
            else:
                curve.held_out.append(HeldOutPoint(**row))
        return curve

    def plot(self, path: Path) -> None:
        """Draw training and held-out divergence over the steps as a PNG."""
        # Without pyplot: no global state, and no window on any machine.
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

        figure = Figure(figsize=(7.2, 4.2), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        steps, divergences = [point.step for point in self.train], [point.kl for point in self.train]
        axes.plot(steps, divergences, color="#9bb7d4", linewidth=1, label="training")
        looks, divergences = [point.step for point in self.held_out], [point.kl for point in self.held_out]
        axes.plot(looks, divergences, color="#1f4e79", linewidth=1.6, marker="o", markersize=3, label="held out")
        best = self.best
        label = f"best: {best.kl:.4f} after step {best.step}"
        axes.plot([best.step], [best.kl], color="#c0392b", marker="*", markersize=11, linestyle="none", label=label)
        if min([best.kl, *(point.kl for point in self.train)]) > 0:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("optimizer steps")
        axes.set_ylabel("divergence from the teacher (nats a token)")
        axes.grid(alpha=0.25, which="both")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="upper right")  # searching the best place takes seconds
        with atomic_file(Path(path)) as stream:
            # No software version in the file: equal curves give equal pictures.
            figure.savefig(stream, format="png", metadata={"Software": None})
