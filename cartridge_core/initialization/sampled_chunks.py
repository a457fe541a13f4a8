"""Initialisation from random windows of the corpus (sampled chunk initialisation, SCI, of arXiv 2508.17032)."""

import random
from collections.abc import Sequence

from cartridge_core.cartridge import PrefixKV
from cartridge_core.errors import TrainingError
from cartridge_core.inference.prefix import prefill
from cartridge_core.initialization.first_tokens import check_length
from cartridge_core.initialization.options import SampledChunksOptions
from cartridge_core.initialization.source import InitializationSource
from cartridge_core.models import BaseModel
from cartridge_core.rendering import prefix_token_ids


def sampled_chunks(source: InitializationSource) -> PrefixKV:
    """Keys and values of windows of the corpus from all over it, behind the real head of the system message.

    The model reads head and windows in one pass, as if they were one text, so keys stand at 0, 1, 2, ...

    Raises:
        TrainingError: The corpus is shorter than the Cartridge, or the Cartridge no longer than the message's head.
    """
    ids = prefix_token_ids(source.base.tokenizer, source.corpus.text())
    check_length(source.num_tokens, len(ids), "corpus")
    head = head_length(source.base, ids)
    if source.num_tokens <= head:
        raise TrainingError(
            f"A Cartridge of {source.num_tokens} tokens has no room for windows of the corpus behind the {head} tokens "
            "of the system message's head.",
            f"Choose at least {head + 1} tokens, or the initialisation 'first_tokens'.",
        )
    window = source.options_for(SampledChunksOptions).window_tokens
    return prefill(source.base, ids[:head] + sample_windows(ids[head:], source.num_tokens - head, window, source.seed))


def head_length(base: BaseModel, ids: Sequence[int]) -> int:
    """How many tokens the wrapped corpus has in front of the corpus itself: those that every text's message shares."""
    # A corpus begins with the line that says where its first document comes from.
    other = prefix_token_ids(base.tokenizer, "0")
    return next((i for i, (a, b) in enumerate(zip(ids, other, strict=False)) if a != b), min(len(ids), len(other)))


def sample_windows(ids: Sequence[int], count: int, window: int, seed: int) -> list[int]:
    """`count` tokens of a text: random windows in its order, no token twice; the last one is what is left."""
    window = min(window, count)
    # Distinct places on a line from which the windows were cut out: put back in, none can overlap another.
    places = sorted(random.Random(seed).choices(range(len(ids) - count + 1), k=-(-count // window)))
    starts = [place + index * window for index, place in enumerate(places)]
    lengths = [min(window, count - index * window) for index in range(len(places))]
    return [token for start, length in zip(starts, lengths, strict=True) for token in ids[start : start + length]]
