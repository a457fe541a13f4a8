"""95% intervals: how far a score could be off, given how few questions were asked."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from cartridge_core.errors import EvaluationError

Z_95 = 1.959963984540054
"""Two-sided 95% quantile of the standard normal distribution."""

Means = NDArray[np.float64]

_BLOCK = 1 << 22
"""Resampled indices held at once: 32 MiB of int64."""


class Interval(BaseModel):
    """A closed 95% interval."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    low: float
    """Lower end."""
    high: float
    """Upper end."""

    def overlaps(self, other: "Interval") -> bool:
        """Whether the two intervals share a point."""
        return self.low <= other.high and other.low <= self.high


def wilson(scores: Sequence[float]) -> Interval:
    """Wilson score interval of a proportion (E. B. Wilson, 1927), which stays inside [0, 1] and is not empty at 0 or 1.

    Args:
        scores: One 0 or 1 a question.

    Raises:
        EvaluationError: There are no scores, or one is neither 0 nor 1.
    """
    _need(scores)
    if any(score not in (0, 1) for score in scores):
        raise EvaluationError("A Wilson interval needs scores of 0 or 1.", "Use the bootstrap for graded scores.")
    n = len(scores)
    share = sum(scores) / n
    scale = 1 + Z_95**2 / n
    centre = (share + Z_95**2 / (2 * n)) / scale
    half = Z_95 / scale * math.sqrt(share * (1 - share) / n + Z_95**2 / (4 * n**2))
    # At a share of 0 or 1 one end is exact on paper; rounding must not push the score out of its own interval.
    return Interval(low=min(max(0.0, centre - half), share), high=max(min(1.0, centre + half), share))


def bootstrap(scores: Sequence[float], samples: int = 10_000, seed: int = 0) -> Interval:
    """Percentile bootstrap of the mean, the same for the same scores, samples and seed."""
    return _resample((scores,), lambda means: means[0], samples, seed)


def paired_difference(scores: Sequence[float], against: Sequence[float], samples: int, seed: int) -> Interval:
    """Bootstrap of mean(scores) - mean(against), drawing whole questions, since both arms answered the same ones."""
    return _resample((scores, against), lambda means: means[0] - means[1], samples, seed)


def paired_ratio(scores: Sequence[float], against: Sequence[float], samples: int, seed: int) -> Interval | None:
    """Bootstrap of mean(scores) / mean(against) over whole questions; None when the divisor may be zero."""
    floor = _resample((against,), lambda means: means[0], samples, seed)
    if floor.low <= 0:
        return None
    return _resample((scores, against), lambda means: means[0] / np.maximum(means[1], 1e-12), samples, seed)


def _resample(
    columns: Sequence[Sequence[float]], statistic: Callable[[Means], Means], samples: int, seed: int
) -> Interval:
    """The middle 95% of `statistic` over resampled means [num_columns, num_samples]."""
    for column in columns:
        _need(column)
        if len(column) != len(columns[0]):
            raise EvaluationError(
                f"Paired scores differ in number ({len(columns[0])} and {len(column)}).",
                "Ask both arms the same questions.",
            )
    values = np.asarray(columns, dtype=np.float64)
    n = values.shape[1]
    rng = np.random.default_rng(seed)
    rows = max(1, _BLOCK // n)
    blocks = []
    for start in range(0, samples, rows):
        indices = rng.integers(0, n, size=(min(rows, samples - start), n))
        blocks.append(np.stack([column[indices].mean(axis=1) for column in values]))
    low, high = np.quantile(statistic(np.concatenate(blocks, axis=1)), [0.025, 0.975])
    return Interval(low=float(low), high=float(high))


def _need(scores: Sequence[float]) -> None:
    if len(scores) == 0:
        raise EvaluationError("No scores were given.", "Ask at least one question.")
