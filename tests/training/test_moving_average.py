"""The moving average of the masters."""

from pathlib import Path

import pytest
import torch

from cartridge_core.corpus import Corpus
from cartridge_core.dataset import ConversationDataset
from cartridge_core.models import BaseModel
from cartridge_core.training.config import TrainingConfig
from cartridge_core.training.loop import train
from cartridge_core.training.moving_average import MovingAverage


def test_it_is_the_weighted_mean_of_the_steps() -> None:
    steps = [torch.full((2,), float(value)) for value in (0, 1, 4, 9, 16)]
    average = MovingAverage([steps[0]], decay=0.3)
    expected = 0.0
    for number, value in enumerate(steps[1:], start=1):
        average.update([value], number)
        decay = min(0.3, (1 + number) / (10 + number))
        expected = decay * expected + (1 - decay) * float(value[0])
    assert average.matrices[0].tolist() == pytest.approx([expected] * 2)
    assert steps[0].tolist() == [0.0, 0.0]


def test_the_average_is_what_is_looked_at_and_served(
    base: BaseModel, corpus: Corpus, study: ConversationDataset, config: TrainingConfig, tmp_path: Path
) -> None:
    """At a learning rate that makes steps noisy the average does better; the steps themselves stay the same."""
    config = config.model_copy(update={"learning_rate": 0.4, "schedule": "constant", "steps": 40, "patience": None})
    plain = train(base, corpus, study, config, tmp_path / "plain")
    smooth = train(base, corpus, study, config.model_copy(update={"ema_decay": 0.9}), tmp_path / "smooth")
    assert [point.loss for point in smooth.curve.train] == [point.loss for point in plain.curve.train]
    assert smooth.initial == plain.initial
    assert smooth.curve.held_out[-1].loss < plain.curve.held_out[-1].loss
    assert smooth.cartridge.digest != plain.cartridge.digest
