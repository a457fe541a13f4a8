"""Two arms side by side: what the Cartridge keeps of another arm's quality, and in how much of its memory."""

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from cartridge_core.benchmarks.interval import Interval, paired_difference, paired_ratio
from cartridge_core.evaluation import ArmResult


class Comparison(BaseModel):
    """An arm against another on the same questions; intervals are paired over questions."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    arm: str
    """The arm that is judged."""
    against: str
    """The arm it is judged against."""
    ratio: float | None
    """Score of the one over score of the other; None when that is zero."""
    ratio_interval: Interval | None
    """95% interval of the ratio; None when the divisor may be zero."""
    difference: float
    """Score of the one minus score of the other."""
    difference_interval: Interval
    """95% interval of the difference."""
    intervals_overlap: bool
    """Whether the two arms' own 95% intervals share a point."""
    memory_ratio: float | None
    """Memory of the other over memory of the one, an adapter's weights included; above 1 the one is smaller."""


def compare_arms(arm: ArmResult, against: ArmResult, samples: int, seed: int) -> Comparison | None:
    """Compare two arms that answered the same questions, or None where one of them did not fit."""
    if arm.score is None or against.score is None or arm.interval is None or against.interval is None:
        return None
    ours, theirs = _scores(arm), _scores(against)
    return Comparison(
        arm=arm.name,
        against=against.name,
        ratio=arm.score / against.score if against.score else None,
        ratio_interval=paired_ratio(ours, theirs, samples, seed),
        difference=arm.score - against.score,
        difference_interval=paired_difference(ours, theirs, samples, seed),
        intervals_overlap=arm.interval.overlaps(against.interval),
        memory_ratio=against.memory_bytes / arm.memory_bytes if arm.memory_bytes else None,
    )


def _scores(result: ArmResult) -> Sequence[float]:
    return [row.score for row in result.rows]
