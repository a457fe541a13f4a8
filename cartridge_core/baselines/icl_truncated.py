"""Truncated in-context learning: as much of the corpus as fits into the memory that the Cartridge takes."""

from __future__ import annotations

import re
from bisect import bisect_right
from itertools import islice
from typing import TYPE_CHECKING

from cartridge_core.baselines.arm import ICL_TRUNCATED, Arm, prefilled
from cartridge_core.errors import EvaluationError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from cartridge_core.corpus import Corpus
    from cartridge_core.models import BaseModel

_LONGEST_WORD = 40
"""Characters in front of a blank beyond which a text is taken to be written without spaces, and cut anywhere."""


def icl_truncated_arm(base: BaseModel, corpus: Corpus, num_tokens: int) -> Arm:
    """The system message around the longest beginning of the corpus with which it has at most `num_tokens` tokens."""
    return prefilled(base, ICL_TRUNCATED, truncated_token_ids(base.tokenizer, corpus.text(), num_tokens))


def truncated_token_ids(tokenizer: PreTrainedTokenizerBase, text: str, num_tokens: int) -> list[int]:
    """Token ids of a complete system message around the beginning of `text`, at most `num_tokens` of them.

    The message is closed as the template closes it, so the model sees a well-formed, shorter text. Where the message
    without any text is already too long, its first `num_tokens` ids are the best that this memory can hold.

    Raises:
        EvaluationError: `num_tokens` is not positive.
    """
    from cartridge_core.rendering import prefix_token_ids

    if num_tokens < 1:
        raise EvaluationError(f"A message cannot be cut to {num_tokens} tokens.", "Give the Cartridge's token count.")

    def ids(end: int) -> list[int]:
        return prefix_token_ids(tokenizer, text[:end])

    if len(empty := ids(0)) > num_tokens:
        return empty[:num_tokens]
    # Cut between words: half a word can take more tokens than the whole, so a search over characters goes astray.
    # A word takes at least a token, so no more words than tokens need looking at, however long the corpus is.
    ends = [0, *(match.end() for match in islice(re.finditer(r"\S+", text), num_tokens))]
    words = bisect_right(ends, num_tokens, key=lambda end: len(ids(end)))
    cut = ends[words - 1]
    following = ends[words] if words < len(ends) else cut
    if following - cut > _LONGEST_WORD:
        cut += bisect_right(range(cut + 1, following), num_tokens, key=lambda end: len(ids(end)))
    return ids(cut)
