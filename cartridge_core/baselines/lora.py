"""A LoRA adapter as an arm: the model knows the corpus by its weights, and nothing stands in front of the question."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from cartridge_core.baselines.arm import LORA, Arm, prefilled

if TYPE_CHECKING:
    from cartridge_core.models import BaseModel
    from cartridge_core.training.adapter import Adapter


def lora_arm(base: BaseModel, adapter: Adapter) -> Arm:
    """The base model with the adapter, behind what stands in front of bare turns, as it was trained."""
    from cartridge_core.rendering import bare_prefix_token_ids

    # The adapted model reads these tokens too: their keys and values are not those of the bare model.
    with adapter.applied(base):
        arm = prefilled(base, LORA, bare_prefix_token_ids(base.tokenizer))
    return replace(arm, adapter_bytes=adapter.num_bytes, applied=lambda: adapter.applied(base))
