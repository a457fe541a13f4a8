"""The held-out loss: how well a Cartridge, as it would be served, does on examples it is not trained on."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from cartridge_core.cartridge import Cartridge
from cartridge_core.models import BaseModel
from cartridge_core.selfstudy.conversation import Targets
from cartridge_core.training.config import TrainingConfig
from cartridge_core.training.distillation import packed_loss
from cartridge_core.training.packed_rows import pack_batch


@dataclass(frozen=True)
class HeldOutScore:
    """Means over the held-out examples' predicted tokens, in nats."""

    loss: float
    """Cross-entropy against the teacher."""
    kl: float
    """The same less the teacher's entropy: what a perfect student would bring to zero."""

    @property
    def finite(self) -> bool:
        """Whether it is a number."""
        return math.isfinite(self.loss)


class HeldOut:
    """Held-out examples, laid out once and looked at many times."""

    def __init__(self, base: BaseModel, examples: Sequence[Targets], config: TrainingConfig) -> None:
        """Lay them out.

        Args:
            base: The model.
            examples: At least one.
            config: How they are packed and computed.
        """
        self._base, self._chunk_tokens = base, config.loss_chunk_tokens
        self._parts = pack_batch(examples, config, base.device)
        self._tokens = sum(len(part.teacher) for part in self._parts)
        self._entropy = sum(float(part.teacher.entropy().sum()) for part in self._parts) / self._tokens

    @torch.no_grad()
    def score(self, cartridge: Cartridge) -> HeldOutScore:
        """Score the stored tensors, in the type that the model serves them in, at temperature 1 however it is trained."""
        prefix = cartridge.prefix().to(self._base.device, self._base.dtype)
        total = sum(
            float(packed_loss(self._base, prefix, part, chunk_tokens=self._chunk_tokens).loss) for part in self._parts
        )
        loss = total / self._tokens
        return HeldOutScore(loss, loss - self._entropy)
