import math
import random

import pytest

from cartridge_core.benchmarks.interval import Interval, bootstrap, paired_difference, paired_ratio, wilson
from cartridge_core.errors import EvaluationError


def test_wilson_covers_the_true_share_about_95_percent_of_the_time() -> None:
    rng = random.Random(0)
    share, n, trials = 0.9, 60, 2000
    intervals = [wilson([float(rng.random() < share) for _ in range(n)]) for _ in range(trials)]
    covered = sum(interval.low <= share <= interval.high for interval in intervals) / trials
    assert 0.93 <= covered <= 0.975


def test_wilson_is_not_empty_at_the_ends_and_holds_the_share() -> None:
    all_right, all_wrong = wilson([1.0] * 20), wilson([0.0] * 20)
    assert all_right.high == 1.0
    assert all_right.low == pytest.approx(1 - all_wrong.high)
    assert all_right.low == pytest.approx(0.8389, abs=1e-4)
    for right in range(1, 60):
        interval = wilson([1.0] * right + [0.0] * (60 - right))
        assert 0 <= interval.low <= right / 60 <= interval.high <= 1


def test_wilson_refuses_graded_scores_and_nothing() -> None:
    with pytest.raises(EvaluationError, match="0 or 1"):
        wilson([0.5])
    with pytest.raises(EvaluationError, match="No scores"):
        wilson([])


def test_bootstrap_is_seeded_and_agrees_with_the_normal_approximation() -> None:
    rng = random.Random(1)
    scores = [rng.random() for _ in range(400)]
    interval = bootstrap(scores, samples=4000, seed=3)
    assert interval == bootstrap(scores, samples=4000, seed=3)
    assert interval != bootstrap(scores, samples=4000, seed=4)
    mean = sum(scores) / len(scores)
    error = math.sqrt(sum((score - mean) ** 2 for score in scores)) / len(scores)
    assert interval.low == pytest.approx(mean - 1.96 * error, abs=0.15 * error)
    assert interval.high == pytest.approx(mean + 1.96 * error, abs=0.15 * error)


def test_pairing_knows_that_both_arms_answered_the_same_questions() -> None:
    scores = [float(i % 2) for i in range(100)]
    same = paired_difference(scores, scores, samples=1000, seed=0)
    assert (same.low, same.high) == (0.0, 0.0)
    opposite = paired_difference(scores, [1 - score for score in scores], samples=1000, seed=0)
    assert opposite.low < -0.1 < 0.1 < opposite.high
    ratio = paired_ratio(scores, scores, samples=1000, seed=0)
    assert ratio == Interval(low=1.0, high=1.0)


def test_a_ratio_over_what_may_be_zero_has_no_interval() -> None:
    assert paired_ratio([1.0] * 20, [1.0] + [0.0] * 19, samples=1000, seed=0) is None


def test_unpaired_scores_are_refused() -> None:
    with pytest.raises(EvaluationError, match="differ in number"):
        paired_difference([1.0, 0.0], [1.0], samples=1000, seed=0)


def test_overlap() -> None:
    low, high = Interval(low=0.1, high=0.3), Interval(low=0.4, high=0.6)
    assert not low.overlaps(high) and not high.overlaps(low)
    assert low.overlaps(Interval(low=0.3, high=0.5))
