"""The exponential moving average (EMA) of the tensors in training."""

from collections.abc import Sequence

import torch
from torch import Tensor


class MovingAverage:
    """An average of the masters over the latest steps: the noise of single steps cancels out.

    After step t (from 1) it is `d * average + (1 - d) * master` with `d = min(decay, (1 + t) / (10 + t))`: the growing
    decay forgets the initial tensors early (the rule of TensorFlow's `ExponentialMovingAverage`).

    Attributes:
        matrices: The averages, in the form and order of the masters.
    """

    def __init__(self, masters: Sequence[Tensor], decay: float) -> None:
        self._decay = decay
        self.matrices = [master.detach().clone() for master in masters]

    @torch.no_grad()
    def update(self, masters: Sequence[Tensor], step: int) -> None:
        """Take in the masters after step `step`, counted from 1."""
        weight = 1 - min(self._decay, (1 + step) / (10 + step))
        for average, master in zip(self.matrices, masters, strict=True):
            average.lerp_(master, weight)
