"""The gradient of one optimizer step: a batch in parts, accumulated over parts and ranks."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from cartridge_core.models import BaseModel
from cartridge_core.prefix_kv import PrefixKV
from cartridge_core.selfstudy.conversation import Targets
from cartridge_core.training.config import TrainingConfig
from cartridge_core.training.distillation import packed_loss
from cartridge_core.training.hidden_states import TeacherStates, layer_outputs
from cartridge_core.training.layer_modes import recomputed_activations
from cartridge_core.training.micro_batch import MicroBatch
from cartridge_core.training.packed_rows import PackedRows, input_length, pack_batch
from cartridge_core.training.precision import training_precision
from cartridge_core.training.ranks import Ranks


class Trainable(Protocol):
    """Tensors that a batch's loss depends on: of a prefix, or of an adapter inside the model."""

    def parameters(self) -> list[Tensor]:
        """The fp32 masters that get the gradient."""
        ...

    def prefix(self) -> PrefixKV:
        """What precedes every example."""
        ...


class Trained(Protocol):
    """A run's state, as far as a gradient needs it."""

    @property
    def prefix(self) -> Trainable:
        """Whose masters get the gradient."""
        ...

    @property
    def optimizer(self) -> Optimizer:
        """Clears the gradients."""
        ...

    @property
    def micro_batch(self) -> MicroBatch:
        """How much passes through the model at once."""
        ...


@dataclass(frozen=True)
class BatchLoss:
    """What a batch of all ranks says before the masters are changed."""

    loss: float
    """Cross-entropy against the teacher, nats a predicted token."""
    entropy: float
    """The teacher's own, nats a predicted token."""
    grad_norm: float
    """Of all keys and values, before clipping."""
    tokens: int
    """Predicted tokens."""
    state_distance: float | None = None
    """Of the hidden states from the teacher's, the mean over predicted tokens, where they are matched."""

    def told(self) -> str:
        """The numbers, for a message."""
        distance = "" if self.state_distance is None else f", distance of hidden states {self.state_distance}"
        return f"loss {self.loss}, gradient norm {self.grad_norm}{distance}"

    @property
    def finite(self) -> bool:
        """Whether loss and gradient are numbers."""
        return all(map(math.isfinite, (self.loss, self.grad_norm, self.state_distance or 0.0)))


def batch_gradient(
    base: BaseModel,
    state: Trained,
    examples: Sequence[Targets],
    config: TrainingConfig,
    ranks: Ranks,
    teacher_states: TeacherStates | None = None,
) -> BatchLoss:
    """Put a batch's clipped gradient into the masters' `grad`; the masters themselves stay as they are.

    It is that of one mean over all predicted tokens of the batch, however many parts and ranks share them: a part's own
    mean would weigh short answers more.

    Args:
        base: The frozen model.
        state: Whose masters get the gradient; its micro-batch is halved when memory runs out.
        examples: The whole batch, the same on every rank; each computes its share.
        config: Precision and clipping.
        ranks: Who computes.
        teacher_states: The hidden states to match, if any.

    Raises:
        TrainingError: Memory ran out again after the micro-batch had been halved.
    """
    tokens = sum(int(example.assistant_mask.sum()) for example in examples)
    own = ranks.share(examples)
    sums = torch.zeros(3, device=base.device)

    def accumulate(micro_batch_tokens: int) -> None:
        state.optimizer.zero_grad(set_to_none=True)
        sums.zero_()
        parts = pack_batch(own, config, micro_batch_tokens, base.device) if own else []
        # Counted first: a rank without a part of its own would ask while the others are in their passes.
        passes = ranks.most(len(parts), base.device) if ranks.lockstep else len(parts)
        for part in parts:
            sums.add_(_backward(base, state.prefix, part, own, tokens, config, teacher_states))
        if passes > len(parts):
            # The others cannot pass their layers without this rank's share of the weights.
            (idle,) = pack_batch([examples[0]], config, micro_batch_tokens, base.device)
            for _ in range(passes - len(parts)):
                _backward(base, state.prefix, idle, [examples[0]], math.inf, config)

    if teacher_states:
        teacher_states.prepare(own)
    with recomputed_activations(base, config.activation_checkpointing):
        if ranks.lockstep:
            # One rank alone cannot repeat a pass that all make together.
            accumulate(state.micro_batch.tokens)
        else:
            state.micro_batch.run(accumulate, most=sum(input_length(example) for example in own))
    masters = state.prefix.parameters()
    for master in masters:
        if master.grad is None:
            master.grad = torch.zeros_like(master)
    ranks.sum([sums, *(master.grad for master in masters if master.grad is not None)])
    norm = torch.nn.utils.clip_grad_norm_(masters, config.max_grad_norm)
    loss, entropy, distance = sums.tolist()
    return BatchLoss(loss, entropy, float(norm), tokens, distance if teacher_states else None)


def _backward(
    base: BaseModel,
    prefix: Trainable,
    part: PackedRows,
    examples: Sequence[Targets],
    tokens: float,
    config: TrainingConfig,
    teacher_states: TeacherStates | None = None,
) -> Tensor:
    """Add a part's gradient to the masters' and return its share of loss, entropy and states' distance, `[3]`."""
    layers = teacher_states.layers if teacher_states else ()
    with training_precision(base, config), layer_outputs(base, layers) as seen:
        sums = packed_loss(
            base, prefix.prefix(), part, temperature=config.temperature, chunk_tokens=config.loss_chunk_tokens
        )
    distance = teacher_states.distance(seen, part, examples) if teacher_states else None
    if distance is None:
        distance = torch.zeros_like(sums.loss)
    ((sums.loss + config.hidden_state_weight * distance) / tokens).backward()
    return torch.stack((sums.loss.detach(), sums.entropy, distance.detach())) / tokens
