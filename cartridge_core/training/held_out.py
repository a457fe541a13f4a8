"""The held-out loss: how well a Cartridge, as it would be served, does on examples it is not trained on."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from cartridge_core.cartridge import Cartridge
from cartridge_core.models import BaseModel
from cartridge_core.prefix_kv import PrefixKV
from cartridge_core.selfstudy.conversation import Targets
from cartridge_core.training.config import TrainingConfig
from cartridge_core.training.distillation import packed_loss
from cartridge_core.training.micro_batch import MicroBatch
from cartridge_core.training.packed_rows import PackedRows, input_length, pack_batch
from cartridge_core.training.ranks import ALONE, Ranks


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
    """Held-out examples, laid out once and looked at many times; each rank looks at its share."""

    def __init__(
        self, base: BaseModel, examples: Sequence[Targets], config: TrainingConfig, ranks: Ranks = ALONE
    ) -> None:
        """Remember them.

        Args:
            base: The model.
            examples: At least one, the same on every rank.
            config: How they are packed and computed.
            ranks: Who looks.
        """
        self._base, self._config = base, config
        self._ranks = ranks
        self._own = ranks.share(examples)
        self._idle = [examples[0]]
        self._tokens = sum(int(example.assistant_mask.sum()) for example in examples)
        self._parts: list[PackedRows] = []
        self._parts_of = 0
        self._entropy: float | None = None

    def score(self, cartridge: Cartridge, micro_batch: MicroBatch) -> HeldOutScore:
        """Score the stored tensors, in the type that the model serves them in, at temperature 1 whatever is trained at.

        Args:
            cartridge: As it would be served.
            micro_batch: How much passes through the model at once.

        Raises:
            TrainingError: Memory ran out again after the micro-batch had been halved.
        """
        return self.score_behind(cartridge.prefix().to(self._base.device, self._base.dtype), micro_batch)

    @torch.no_grad()
    def score_behind(self, prefix: PrefixKV, micro_batch: MicroBatch) -> HeldOutScore:
        """Score the model as it is now, behind a prefix on its device and in its type; else as `score`."""

        def loss_of(part: PackedRows) -> float:
            return float(packed_loss(self._base, prefix, part, chunk_tokens=self._config.loss_chunk_tokens).loss)

        def total(max_tokens: int) -> float:
            return sum(loss_of(part) for part in self._laid_out(max_tokens))

        if self._ranks.lockstep:
            # Counted first: a rank without a part of its own would ask while the others are in their passes.
            parts = len(self._laid_out(micro_batch.tokens))
            passes = self._ranks.most(parts, self._base.device)
            own = total(micro_batch.tokens)
            (idle,) = pack_batch(self._idle, self._config, micro_batch.tokens, self._base.device)
            for _ in range(passes - parts):
                loss_of(idle)
        else:
            own = micro_batch.run(total, most=sum(input_length(example) for example in self._own))
        loss = self._ranks.total(own, self._base.device) / self._tokens
        if self._entropy is None:
            entropy = sum(float(part.teacher.entropy().sum()) for part in self._parts)
            self._entropy = self._ranks.total(entropy, self._base.device) / self._tokens
        return HeldOutScore(loss, loss - self._entropy)

    def _laid_out(self, max_tokens: int) -> list[PackedRows]:
        if self._parts_of != max_tokens:
            self._parts = pack_batch(self._own, self._config, max_tokens, self._base.device) if self._own else []
            self._parts_of = max_tokens
        return self._parts
