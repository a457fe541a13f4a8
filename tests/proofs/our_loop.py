"""Our side of a comparison: the product's own optimizer steps, a few at a time."""

import time

from cartridge_core.cartridge import Cartridge
from cartridge_core.models import BaseModel
from cartridge_core.prefix_kv import PrefixKV
from cartridge_core.rendering import template_digest
from cartridge_core.selfstudy.conversation import Targets
from cartridge_core.training.config import TrainingConfig
from cartridge_core.training.held_out import HeldOut
from cartridge_core.training.initial import initial_prefix
from cartridge_core.training.objective import Material, distillation
from cartridge_core.training.optimizer import set_learning_rate
from cartridge_core.training.packed_rows import input_length
from cartridge_core.training.ranks import ALONE
from cartridge_core.training.schedule import learning_rate
from cartridge_core.training.state import TrainingState
from cartridge_core.training.step import batch_gradient
from tests.proofs.sample_study import SampleStudy


def num_trained(examples: list[Targets]) -> int:
    """Tokens of conversations that a step reads, padding left out: the same for whoever trains on them."""
    return sum(input_length(example) for example in examples)


class OurLoop:
    """What `training.run.Run` does between two looks at the held-out conversations."""

    def __init__(self, base: BaseModel, study: SampleStudy, config: TrainingConfig) -> None:
        self.base, self.config = base, config
        self.material: Material = distillation(base, study.corpus, study.conversations, config)
        self.initial = initial_prefix(base, study.corpus, study.conversations, config)
        self.state = TrainingState(self.initial, config, base.device)
        self._held_out = HeldOut(base, self.material.held_out, config)

    def train(self, steps: int) -> float:
        """Take the next steps; returns seconds."""
        started = time.perf_counter()
        for _ in range(steps):
            set_learning_rate(self.state.optimizer, learning_rate(self.config, self.state.step))
            examples = self.material.stream.batch(self.state.step)
            batch_gradient(self.base, self.state, examples, self.config, ALONE)
            self.state.update()
        return time.perf_counter() - started

    def held_out(self, prefix: PrefixKV | None = None) -> float:
        """Held-out divergence in nats of the keys and values reached, or of another's."""
        cartridge = Cartridge.from_prefix(
            prefix or self.state.served(),
            base_model=self.base.identity,
            layers=self.base.layer_specs,
            dtype=self.base.kv_dtype,
            template_digest=template_digest(self.base.tokenizer),
        )
        return self._held_out.score(cartridge, self.state.micro_batch).kl
