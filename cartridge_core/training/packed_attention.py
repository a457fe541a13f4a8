"""Attention of packed rows behind one trainable prefix.

Several examples share a row, blind to each other; all of them see the prefix, of which there is one copy (the layout of
the Cartridges authors' second release, without its fork of the models). The stock model calls this through
transformers' attention interface. It equals plain attention over prefix and example, gradients to the prefix included.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from cartridge_core.cartridge import PrefixKV
from cartridge_core.errors import UnsupportedModelError
from cartridge_core.manifest import LayerSpec
from cartridge_core.models import BaseModel
from cartridge_core.training.packed_rows import PackedRows

NAME = "cartridge_packed_rows"
"""Under this name the attention is registered with transformers."""


@dataclass(frozen=True)
class _Active:
    prefix: PrefixKV
    layers: Sequence[LayerSpec]
    rows: PackedRows
    biases: dict[int | None, tuple[Tensor | None, Tensor]] = field(default_factory=dict)

    def bias(self, window: int | None, dtype: torch.dtype) -> tuple[Tensor | None, Tensor]:
        """What is added to scores: to the prefix's `[R, 1, T, n]` (None for nothing), to own tokens' `[R, 1, T, T]`."""
        if window not in self.biases:
            index, segment = self.rows.index, self.rows.segment
            distance = index[:, :, None] - index[:, None, :]
            # Padding sees padding: a query that saw nothing would make NaN.
            hidden = (segment[:, :, None] != segment[:, None, :]) | (distance < 0)
            shared = None
            if window is not None:
                hidden |= distance >= window
                count = self.prefix.num_tokens
                far = index[:, :, None] + count - torch.arange(count, device=index.device) >= window
                shared = _bias(far, dtype)
            self.biases[window] = (shared, _bias(hidden, dtype))
        return self.biases[window]


_ACTIVE: ContextVar[_Active] = ContextVar("cartridge_packed_rows")


def packed_logits(base: BaseModel, prefix: PrefixKV, rows: PackedRows) -> Tensor:
    """Logits at the places that are compared with the teacher, from the stock model's own forward pass.

    The head is applied to those places only. Gradients flow to the prefix.

    Args:
        base: The model; its attention is put back as it was.
        prefix: What precedes every example.
        rows: The examples.

    Returns:
        `[m, vocabulary]` in the type that the model computes in.

    Raises:
        UnsupportedModelError: A layer of the model attends though the prefix holds no keys for it.
    """
    count = rows.token_ids.numel()
    with _packed(base, prefix, rows):
        logits = base.model(
            # One row for the model, so that its own code picks the places; the attention sees the rows.
            input_ids=rows.token_ids.view(1, count),
            position_ids=(rows.index + prefix.next_position).view(1, count),
            # Four dimensions mean "made by the caller": models hand it on unread, and so does the attention below.
            attention_mask=rows.token_ids.new_ones((1, 1, 1, 1), dtype=torch.bool),
            use_cache=False,
            logits_to_keep=rows.predicting,
        ).logits[0]
    # A model that does not know the argument gives all logits.
    return logits if len(logits) == len(rows.predicting) else logits[rows.predicting]


@contextmanager
def _packed(base: BaseModel, prefix: PrefixKV, rows: PackedRows) -> Iterator[None]:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    before = base.model.config._attn_implementation
    token = _ACTIVE.set(_Active(prefix, base.layer_specs, rows))
    base.model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        base.model.set_attn_implementation(before)
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
    """Attention over prefix and own tokens.

    `query` is `[1, heads, R * T, d]`, `key` and `value` are `[1, kv heads, R * T, d]`, what is returned is
    `[1, R * T, heads, d]`.
    """
    active = _ACTIVE.get()
    layer = int(module.layer_idx)  # type: ignore[arg-type]  # every attention that has a cache knows its layer
    prefix_key, prefix_value = active.prefix.keys[layer], active.prefix.values[layer]
    if prefix_key is None or prefix_value is None:
        raise UnsupportedModelError(f"Layer {layer} attends, but the prefix holds no keys for it.")
    rows, length = active.rows.token_ids.shape
    kv_heads, dim = key.shape[1], key.shape[3]
    count, group = prefix_key.shape[1], query.shape[1] // kv_heads
    # Under autocast the rotation has made queries and keys fp32 again; the values still have the type to compute in.
    dtype = value.dtype
    scale = dim**-0.5 if scaling is None else scaling

    with torch.autocast(query.device.type, enabled=False):
        # KV heads go first, so that all queries of one head meet its prefix in a single product.
        queries = query.to(dtype).reshape(kv_heads, group, rows, length, dim).transpose(1, 2)
        queries = queries.reshape(kv_heads, rows * group * length, dim)
        # Keys are scaled because there are fewer of them than queries.
        own_key = (key * scale).to(dtype).reshape(kv_heads * rows, length, dim)
        own_value = value.reshape(kv_heads * rows, length, dim)
        shared = torch.bmm(queries, (prefix_key * scale).to(dtype).transpose(1, 2))
        own = torch.bmm(queries.view(kv_heads * rows, group * length, dim), own_key.transpose(1, 2))
        shared_bias, own_bias = active.bias(active.layers[layer].window, dtype)
        own.view(kv_heads, rows, group, length, length).add_(own_bias)
        if shared_bias is not None:
            shared.view(kv_heads, rows, group, length, count).add_(shared_bias)
        weights = torch.cat((shared, own.view(kv_heads, -1, length)), dim=-1).softmax(dim=-1)
        to_prefix, to_own = weights.split((count, length), dim=-1)
        out = torch.bmm(to_prefix, prefix_value.to(dtype)).view(kv_heads * rows, group * length, dim)
        out = out + torch.bmm(to_own.reshape(kv_heads * rows, group * length, length), own_value)
        out = out.view(kv_heads, rows, group, length, dim).permute(1, 3, 0, 2, 4)
        return out.reshape(1, rows * length, kv_heads * group, dim), None


def _bias(hidden: Tensor, dtype: torch.dtype) -> Tensor:
    zeros = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
    return zeros.masked_fill(hidden, torch.finfo(dtype).min)[:, None]
