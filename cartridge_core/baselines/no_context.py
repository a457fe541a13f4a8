"""No context: the model answers from its weights, behind the BOS token alone. What guessing gives."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cartridge_core.baselines.arm import NO_CONTEXT, Arm, prefilled

if TYPE_CHECKING:
    from cartridge_core.corpus import Corpus
    from cartridge_core.models import BaseModel


def no_context_arm(base: BaseModel, corpus: Corpus, num_tokens: int) -> Arm:
    """The BOS token, or nothing for a tokenizer without one; corpus and memory are not looked at."""
    from cartridge_core.rendering import bare_prefix_token_ids

    return prefilled(base, NO_CONTEXT, bare_prefix_token_ids(base.tokenizer))
