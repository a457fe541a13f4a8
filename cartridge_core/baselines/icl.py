"""In-context learning: the whole corpus in the system message. The quality that a Cartridge is measured against."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cartridge_core.baselines.arm import ICL, Arm, prefilled

if TYPE_CHECKING:
    from cartridge_core.corpus import Corpus
    from cartridge_core.models import BaseModel


def icl_arm(base: BaseModel, corpus: Corpus, num_tokens: int) -> Arm:
    """The system message that wraps the corpus, whatever memory it takes; an arm that does not fit if it overflows."""
    from cartridge_core.rendering import prefix_token_ids

    return prefilled(base, ICL, prefix_token_ids(base.tokenizer, corpus.text()))
