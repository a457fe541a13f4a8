"""Prefixes: made by reading a text, and laid out as a cache in front of a batch."""

from collections.abc import Iterator, Sequence

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from cartridge_core.cartridge import PrefixKV
from cartridge_core.errors import InferenceError
from cartridge_core.manifest import LayerSpec
from cartridge_core.models import BaseModel


@torch.inference_mode()
def _read(base: BaseModel, token_ids: Sequence[int], chunk: int) -> DynamicCache:
    cache = full_cache(base)
    ids = torch.tensor([list(token_ids)], device=base.device)
    for start in range(0, ids.shape[1], chunk):
        piece = ids[:, start : start + chunk]
        positions = torch.arange(start, start + piece.shape[1], device=base.device)[None]
        base.model(input_ids=piece, position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return cache


def prefill(base: BaseModel, token_ids: Sequence[int], chunk: int | None = None) -> PrefixKV:
    """Keys and values of a text that the model reads from position 0 on.

    Args:
        base: The model.
        token_ids: The text, led by BOS where the model has one (`rendering.prefix_token_ids`).
        chunk: Tokens read at once; fewer take less memory and give the same result. 2048 where nobody says.

    Returns:
        A prefix whose `next_position` is the number of tokens.

    Raises:
        InferenceError: There are no tokens, or more than the model has positions for.
    """
    if not token_ids:
        raise InferenceError("There are no tokens to read.", "Pass None as the prefix where nothing comes first.")
    if len(token_ids) > base.max_positions:
        raise InferenceError(
            f"{len(token_ids)} tokens do not fit {base.identity.id}, which has {base.max_positions} positions.",
            "Shorten the text, or let a Cartridge stand in for it.",
        )
    return read_prefix(base, _read(base, token_ids, chunk or 2048), len(token_ids))


def read_prefix(base: BaseModel, cache: DynamicCache, next_position: int) -> PrefixKV:
    """What a cache of one text holds, copied; layers that read another's keys have none.

    Args:
        base: The model that filled it.
        cache: Of a batch of one.
        next_position: Where the next token would stand.
    """
    # Outside inference mode a clone is an ordinary tensor again, one that training may start from.
    keys = [layer.keys[0].clone() if spec.has_kv else None for layer, spec in _layers(cache, base)]
    values = [layer.values[0].clone() if spec.has_kv else None for layer, spec in _layers(cache, base)]
    return PrefixKV(keys, values, next_position)


def _layers(cache: DynamicCache, base: BaseModel) -> Iterator[tuple[DynamicLayer, LayerSpec]]:
    return zip(cache.layers, base.layer_specs, strict=True)


def empty_prefix(base: BaseModel) -> PrefixKV:
    """A prefix of no tokens: the prompt starts at position 0."""
    empty = [
        torch.empty(spec.num_kv_heads, 0, spec.head_dim, device=base.device, dtype=base.dtype) if spec.has_kv else None
        for spec in base.layer_specs
    ]
    return PrefixKV(empty, empty, 0)


def full_cache(base: BaseModel) -> DynamicCache:
    """An empty cache that keeps every token in every layer.

    Layers with a sliding window would drop the prefix's head; the mask, not the cache, is what applies the window.
    """
    cache = DynamicCache()
    cache.layers = [DynamicLayer() for _ in base.layer_specs]
    return cache


def past_key_values(base: BaseModel, prefix: PrefixKV, batch: int = 1, pads: int = 0) -> DynamicCache:
    """The prefix as an ordinary cache, repeated for each row of a batch.

    For code that drives `base.model` itself; `generate` and `score` keep the prefix once instead (`attention.behind`).
    Gradients flow to the prefix. Positions are the caller's to give: they start at `prefix.next_position`.

    Args:
        base: The model.
        prefix: What precedes each row.
        batch: Number of rows.
        pads: Empty slots in front of the prefix, which the caller masks.

    Returns:
        A cache of full layers that hold `[batch, num_kv_heads, pads + num_tokens, head_dim]`.
    """
    cache = full_cache(base)
    for index, pair in enumerate(zip(prefix.keys, prefix.values, strict=True)):
        rows = [
            torch.nn.functional.pad(tensor.to(base.device, base.dtype), (0, 0, pads, 0)).expand(batch, -1, -1, -1)
            for tensor in pair
            if tensor is not None
        ]
        if rows:
            cache.layers[index].update(*rows)
    return cache
