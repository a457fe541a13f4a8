"""Optimizers of a Cartridge's keys and values."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from cartridge_core.training.config import TrainingConfig


def adamw(parameters: Sequence[Tensor], config: TrainingConfig) -> Optimizer:
    """Adam, the paper's choice; its decay is off, because a smaller key is a different key, not a simpler one."""
    return torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=0.0)


def muon(parameters: Sequence[Tensor], config: TrainingConfig) -> Optimizer:
    """Momentum whose every update is orthogonalised (Jordan 2024, https://kellerjordan.github.io/posts/muon/).

    All directions in which a layer's keys (or values) can move get the same step, also those with small gradients. The
    learning rate is scaled by `sqrt(max(1, rows / columns))`, as in that source. PyTorch's default decay is off.
    """
    return torch.optim.Muon(
        parameters,
        lr=config.learning_rate,
        momentum=config.momentum,
        weight_decay=0.0,
        adjust_lr_fn="original",
    )


OPTIMIZERS: dict[str, Callable[[Sequence[Tensor], TrainingConfig], Optimizer]] = {"adamw": adamw, "muon": muon}
"""Name to optimizer; `TrainingConfig.optimizer` lists the names, `DEFAULT_LEARNING_RATES` their learning rates."""


def set_learning_rate(optimizer: Optimizer, learning_rate: float) -> None:
    """Let the optimizer's next step use this learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
