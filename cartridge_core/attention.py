"""Attention of many rows behind one shared prefix.

A batch that follows one Cartridge (or one prefilled text) reads the same prefix keys in every row. Copying them into
each row's cache costs memory and time in proportion to batch x prefix; here the prefix is kept once and all rows'
queries meet it in one matrix product (the arrangement of Hydragen, arXiv 2402.05099). The result is that of plain
attention over the concatenated keys, gradients to the prefix included, on any model that calls transformers'
attention interface.
"""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cartridge_core.cartridge import PrefixKV
from cartridge_core.errors import UnsupportedModelError
from cartridge_core.manifest import LayerSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "cartridge_shared_prefix"
"""Under this name the attention is registered with transformers."""

_BLOCK = {True: 1 << 18, False: 1 << 26}
"""Scores computed at once where no gradients are kept, on a CPU and elsewhere.

Bounds memory for long prompts behind long prefixes, and on a CPU lets the scores stay in its cache.
"""


@dataclass(frozen=True)
class _Behind:
    prefix: PrefixKV
    layers: Sequence[LayerSpec]
    query_index: Tensor
    slot_index: Tensor
    masks: dict[int | None, tuple[Tensor | None, Tensor]] = field(default_factory=dict)

    def visible(self, window: int | None) -> tuple[Tensor | None, Tensor]:
        """Which prefix tokens (`[B, T, n]`, None for all) and which slots (`[B, T, S]`) each query may see."""
        if window not in self.masks:
            query, slot = self.query_index[:, :, None], self.slot_index[:, None, :]
            own = (slot <= query) & (slot >= 0)
            shared = None
            if window is not None:
                own &= query - slot < window
                count = self.prefix.num_tokens
                shared = query + count - torch.arange(count, device=query.device) < window
            self.masks[window] = (shared, own)
        return self.masks[window]


_ACTIVE: ContextVar[_Behind | None] = ContextVar("cartridge_prefix", default=None)


def install(model: "PreTrainedModel") -> None:
    """Let a model attend behind a shared prefix; without one it computes as under transformers' `sdpa`.

    Raises:
        UnsupportedModelError: The model does not call transformers' attention interface.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)
    if model.config._attn_implementation != NAME:
        raise UnsupportedModelError(
            f"Model type {model.config.model_type!r} does not use transformers' attention interface.",
            "Use a decoder of the Llama, Qwen, Gemma or Mistral kind.",
        )


@contextmanager
def behind(
    prefix: PrefixKV, layers: Sequence[LayerSpec], query_index: Tensor, slot_index: Tensor
) -> Iterator[dict[str, Tensor]]:
    """Forward passes inside attend to `prefix` first and then to their own tokens.

    Args:
        prefix: Shared by all rows.
        layers: The model's layer specifications; sliding windows count the prefix's tokens too.
        query_index: `[batch, queries]`, how many of the row's own tokens precede each query.
        slot_index: `[batch, slots]`, the same for each key that the layer's cache returns; -1 for padding.

    Yields:
        Keyword arguments for the model's forward pass: positions, and a mask that keeps it from making its own.
    """
    active = _Behind(prefix, layers, query_index, slot_index)
    token = _ACTIVE.set(active)
    try:
        yield {
            "position_ids": query_index + prefix.next_position,
            # Four dimensions mean "made by the caller": models hand it on unread, and so does the attention below.
            "attention_mask": active.visible(None)[1][:, None],
        }
    finally:
        _ACTIVE.reset(token)


def _attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention over prefix and own keys. `query` is `[B, heads, T, d]`, `key` and `value` `[B, kv heads, S, d]`."""
    active = _ACTIVE.get()
    if active is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)

    layer = int(module.layer_idx)  # type: ignore[arg-type]  # every attention that has a cache knows its layer
    prefix_key, prefix_value = active.prefix.keys[layer], active.prefix.values[layer]
    if prefix_key is None or prefix_value is None:
        raise UnsupportedModelError(f"Layer {layer} attends, but the prefix holds no keys for it.")
    see_prefix, see_own = active.visible(active.layers[layer].window)
    query = query * (query.shape[3] ** -0.5 if scaling is None else scaling)
    if torch.is_grad_enabled():
        # Everything is kept for the backward pass anyway.
        return _attend(query, key, value, prefix_key, prefix_value, see_prefix, see_own), None

    batch, heads, length = query.shape[:3]
    width = heads * (prefix_key.shape[1] + key.shape[2])
    limit = _BLOCK[query.device.type == "cpu"]
    columns = max(1, min(length, limit // width))
    rows = max(1, limit // (width * columns))
    out = query.new_empty(batch, length, heads, value.shape[3])
    for row, column in itertools.product(range(0, batch, rows), range(0, length, columns)):
        at, here = slice(row, row + rows), slice(column, column + columns)
        out[at, here] = _attend(
            query[at, :, here],
            key[at],
            value[at],
            prefix_key,
            prefix_value,
            None if see_prefix is None else see_prefix[at, here],
            see_own[at, here],
        )
    return out, None


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prefix_key: Tensor,
    prefix_value: Tensor,
    see_prefix: Tensor | None,
    see_own: Tensor,
) -> Tensor:
    """Attention of scaled queries over prefix and own keys; returns `[B, T, heads, d]`."""
    batch, heads, length, dim = query.shape
    kv_heads, slots, count = key.shape[1], key.shape[2], prefix_key.shape[1]
    group = heads // kv_heads

    # KV heads go first, so that all rows' queries of one head meet its prefix in a single product.
    flat = query.reshape(batch, kv_heads, group * length, dim).transpose(0, 1)
    flat = flat.reshape(kv_heads, batch * group * length, dim)
    shared = torch.bmm(flat, prefix_key.transpose(1, 2)).view(kv_heads, batch, group, length, count)
    own = flat.view(kv_heads, batch, group * length, dim) @ key.transpose(0, 1).transpose(2, 3)
    own = own.view(kv_heads, batch, group, length, slots)

    # The lowest finite number, not -inf: a padding query that sees nothing must not make NaN.
    lowest = torch.finfo(own.dtype).min
    own = own.masked_fill(~see_own[None, :, None], lowest)
    if see_prefix is not None:
        shared = shared.masked_fill(~see_prefix[None, :, None], lowest)
    weights = torch.cat((shared, own), dim=-1).softmax(dim=-1, dtype=torch.float32).to(value.dtype)

    out = torch.bmm(weights[..., :count].reshape(kv_heads, batch * group * length, count), prefix_value)
    out = out.view(kv_heads, batch, group * length, value.shape[3])
    out = out + weights[..., count:].reshape(kv_heads, batch, group * length, slots) @ value.transpose(0, 1)
    return out.view(kv_heads, batch, group, length, -1).permute(1, 3, 0, 2, 4).reshape(batch, length, heads, -1)
