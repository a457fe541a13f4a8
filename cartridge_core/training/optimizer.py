"""Optimizers of a Cartridge's keys and values."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from cartridge_core.training.config import TrainingConfig
from cartridge_core.training.muon import HeadwiseMuon


def adamw(parameters: Sequence[Tensor], config: TrainingConfig) -> Optimizer:
    """Adam, the paper's choice; its decay is off, because a smaller key is a different key, not a simpler one."""
    return torch.optim.AdamW(_groups(parameters, config), lr=config.learning_rate, weight_decay=0.0)


def muon(parameters: Sequence[Tensor], config: TrainingConfig) -> Optimizer:
    """Momentum with all directions of a head made equal: several times fewer steps than Adam to the same loss."""
    return HeadwiseMuon(_groups(parameters, config), config.learning_rate, config.momentum)


OPTIMIZERS: dict[str, Callable[[Sequence[Tensor], TrainingConfig], Optimizer]] = {"adamw": adamw, "muon": muon}
"""Name to optimizer of `TrainablePrefix.parameters()`; `TrainingConfig.optimizer` lists the names."""


def _groups(parameters: Sequence[Tensor], config: TrainingConfig) -> list[dict[str, Any]]:
    """Keys and values apart, each with the share of the learning rate that it moves at."""
    keys, values = parameters[: len(parameters) // 2], parameters[len(parameters) // 2 :]
    groups = ((keys, 1.0), (values, config.value_learning_rate_ratio))
    return [
        {"params": list(part), "lr": config.learning_rate * ratio, "ratio": ratio} for part, ratio in groups if part
    ]


def set_learning_rate(optimizer: Optimizer, learning_rate: float) -> None:
    """Let the optimizer's next step use this learning rate for keys, and its share of it for values."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["ratio"]
