import itertools

import pytest

from cartridge_core.training.config import TrainingConfig
from cartridge_core.training.schedule import learning_rate


def rates(**options: object) -> list[float]:
    stated = {"num_tokens": 4, "learning_rate": 0.1, "steps": 20, "warmup_steps": 4} | options
    config = TrainingConfig.model_validate(stated)
    return [learning_rate(config, step) for step in range(config.steps)]


def test_warm_up_precedes_the_first_step() -> None:
    assert rates()[:5] == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1])


def test_without_warm_up_the_first_step_is_at_the_peak() -> None:
    assert rates(warmup_steps=0)[0] == 0.1


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_falls_to_zero(schedule: str) -> None:
    falling = rates(schedule=schedule)[4:]
    assert all(later < earlier for earlier, later in itertools.pairwise(falling))
    assert falling[8] == pytest.approx(0.05)
    assert 0 < falling[-1] < 0.01


def test_constant_stays() -> None:
    assert set(rates(schedule="constant")[4:]) == {0.1}
