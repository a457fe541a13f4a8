"""What makes a benchmark: how a reply is judged and how sure the mean of the judgements is."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cartridge_core.benchmarks.interval import Interval
from cartridge_core.benchmarks.question import Question


@dataclass(frozen=True, slots=True)
class Verdict:
    """The judgement of one reply."""

    score: float
    """Between 0 (wrong) and 1 (right)."""
    parsed: bool
    """False when the reply holds nothing that could be judged; such a reply scores 0 and is counted."""


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A way of judging replies."""

    name: str
    """The key in `BENCHMARKS`."""
    metric: str
    """What the mean score is called: `accuracy`, `F1`."""
    score: Callable[[Question, str], Verdict]
    """Judges one reply to one question."""
    interval: Callable[[Sequence[float], int, int], Interval]
    """95% interval of the mean score, from (scores, bootstrap samples, seed)."""
