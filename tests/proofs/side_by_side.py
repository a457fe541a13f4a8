"""Two sides of a comparison that took turns: whatever else the machine did met both."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class SideBySide:
    """Seconds of rounds, taken in turns, and the tokens of each."""

    ours: Sequence[float]
    theirs: Sequence[float]
    our_tokens: Sequence[int]
    their_tokens: Sequence[int]
    warm_up: int
    """Rounds at the start that do not count: kernels are made then."""

    def speedups(self) -> list[float]:
        """Our tokens a second over theirs, round by round."""
        return [mine / other for mine, other in zip(self.our_rates(), self.their_rates(), strict=True)]

    def our_rates(self) -> list[float]:
        """Our tokens a second, round by round."""
        return self._rates(self.ours, self.our_tokens)

    def their_rates(self) -> list[float]:
        """Their tokens a second, round by round."""
        return self._rates(self.theirs, self.their_tokens)

    def figures(self, name: str) -> dict[str, float]:
        """Median of the speed-up, and its quartiles."""
        low, middle, high = statistics.quantiles(self.speedups(), n=4)
        return {name: middle, f"{name}_low_quartile": low, f"{name}_high_quartile": high}

    def _rates(self, seconds: Sequence[float], tokens: Sequence[int]) -> list[float]:
        pairs = list(zip(seconds, tokens, strict=True))
        return [count / second for second, count in pairs[self.warm_up :]]
