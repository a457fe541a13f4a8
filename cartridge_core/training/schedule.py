"""The learning rate of each step."""

import math
from collections.abc import Callable

from cartridge_core.training.config import TrainingConfig

SCHEDULES: dict[str, Callable[[float], float]] = {
    "linear": lambda done: 1 - done,
    "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
    "constant": lambda done: 1.0,
}
"""Name to share of the peak, given the share of the steps after the warm-up that is done."""


def learning_rate(config: TrainingConfig, step: int) -> float:
    """Learning rate that step `step` (counted from 0) is taken with.

    Set before the step, so that the warm-up precedes the first one: it runs at `1 / warmup_steps` of the peak. From the
    peak on the rate falls so that it would be zero at `config.steps`.

    Args:
        config: Peak, warm-up, length and shape.
        step: From 0 to `config.steps - 1`.
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / (config.steps - config.warmup_steps)
    return config.learning_rate * SCHEDULES[config.schedule](done)
