"""All that changes while a Cartridge is trained, and all that a checkpoint therefore holds."""

from collections.abc import Mapping
from typing import Any, Self

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from cartridge_core.errors import ArtifactError
from cartridge_core.prefix_kv import PrefixKV
from cartridge_core.training.config import TrainingConfig
from cartridge_core.training.curve import LossCurve
from cartridge_core.training.micro_batch import MicroBatch
from cartridge_core.training.moving_average import MovingAverage
from cartridge_core.training.optimizer import OPTIMIZERS
from cartridge_core.training.optimizer_state import optimizer_state, restore_optimizer
from cartridge_core.training.trainable_prefix import TrainablePrefix


class StateRecord(BaseModel):
    """What of the state is not a tensor."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int
    """Optimizer steps taken. Learning rate, batch and random numbers of a step follow from its number alone."""
    next_position: int
    """Where the user's tokens start."""
    looks_without_gain: int
    """Held-out looks since the best one."""
    micro_batch_tokens: int
    """Tokens that pass through the model at once."""
    micro_batch_halved: bool
    """Whether memory has run out before."""
    optimizer: dict[str, Any]
    """The optimizer's settings and numbers; its tensors are beside them."""


class TrainingState:
    """Masters, optimizer, moving average, counters and loss curve of a run.

    Attributes:
        prefix: The masters.
        optimizer: Changes the masters.
        average: Their moving average, where the configuration asks for one.
        step: Optimizer steps taken, which is also the position in the data.
        looks_without_gain: Held-out looks since the best one.
        micro_batch: How much passes through the model at once.
        curve: All steps and looks.
    """

    def __init__(self, initial: PrefixKV, config: TrainingConfig, device: torch.device) -> None:
        """Begin at step 0 from a prefix."""
        self.prefix = TrainablePrefix(initial, config.num_frozen_tokens, device)
        masters = self.prefix.parameters()
        self.optimizer = OPTIMIZERS[config.optimizer](masters, config)
        self.average = None if config.ema_decay is None else MovingAverage(masters, config.ema_decay)
        self.step = 0
        self.looks_without_gain = 0
        self.micro_batch = MicroBatch(config.micro_batch_tokens)
        self.curve = LossCurve()

    def served(self) -> PrefixKV:
        """The prefix that would be served now: the average where there is one, else the masters."""
        matrices = self.prefix.parameters() if self.average is None else self.average.matrices
        return self.prefix.prefix([matrix.detach() for matrix in matrices])

    def update(self) -> None:
        """Let the optimizer use the gradients; one more step is taken then."""
        self.optimizer.step()
        self.step += 1
        if self.average is not None:
            self.average.update(self.prefix.parameters(), self.step)

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by name: `layers.{i}.key`, `layers.{i}.value` (in fp32), `average.{j}`, `optimizer.{j}.*`."""
        whole = self.prefix.prefix([matrix.detach() for matrix in self.prefix.parameters()])
        tensors = {
            f"layers.{index}.{side}": tensor
            for side, layers in (("key", whole.keys), ("value", whole.values))
            for index, tensor in enumerate(layers)
            if tensor is not None
        }
        if self.average is not None:
            tensors |= {f"average.{index}": matrix for index, matrix in enumerate(self.average.matrices)}
        return tensors | optimizer_state(self.optimizer)[0]

    def record(self) -> StateRecord:
        """Everything else but the curve."""
        return StateRecord(
            step=self.step,
            next_position=self.prefix.prefix().next_position,
            looks_without_gain=self.looks_without_gain,
            micro_batch_tokens=self.micro_batch.tokens,
            micro_batch_halved=self.micro_batch.halved,
            optimizer=optimizer_state(self.optimizer)[1],
        )

    @classmethod
    def restored(
        cls,
        tensors: Mapping[str, Tensor],
        record: StateRecord,
        curve: LossCurve,
        num_layers: int,
        config: TrainingConfig,
        device: torch.device,
    ) -> Self:
        """The state that `tensors()`, `record()` and the curve were taken from, to the bit.

        Raises:
            ArtifactError: The tensors are not those of such a state.
        """
        keys, values = (
            [tensors.get(f"layers.{index}.{side}") for index in range(num_layers)] for side in ("key", "value")
        )
        state = cls(PrefixKV(keys, values, record.next_position), config, device)
        if state.average is not None:
            names = [f"average.{index}" for index in range(len(state.average.matrices))]
            if missing := [name for name in names if name not in tensors]:
                raise ArtifactError(f"A checkpoint lacks the tensors {', '.join(missing)}.")
            for matrix, name in zip(state.average.matrices, names, strict=True):
                matrix.copy_(tensors[name])
        restore_optimizer(state.optimizer, tensors, record.optimizer)
        state.step = record.step
        state.looks_without_gain = record.looks_without_gain
        state.micro_batch = MicroBatch(record.micro_batch_tokens, record.micro_batch_halved)
        state.curve = curve
        return state
