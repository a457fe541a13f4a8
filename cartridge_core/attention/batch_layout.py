"""The layout of generation and scoring: a row a text, keys from each layer's cache."""

import itertools

import torch
from torch import Tensor

from cartridge_core.attention.dense import attend, batch_first, hiding

_BLOCK = {True: 1 << 18, False: 1 << 26}
"""Scores computed at once where no gradients are kept, on a CPU and elsewhere.

Bounds memory for long prompts behind long prefixes, and on a CPU lets the scores stay in its cache.
"""


class BatchLayout:
    """Queries of a batch, each with the keys of its own row."""

    scale_keys = False

    def __init__(self, num_prefix_tokens: int, query_index: Tensor, slot_index: Tensor) -> None:
        """Lay a batch out.

        Args:
            num_prefix_tokens: Length n of the prefix.
            query_index: `[B, T]`, how many of the row's own tokens precede each query.
            slot_index: `[B, S]`, the same for each key; -1 for padding.
        """
        self._count, self._query, self._slot = num_prefix_tokens, query_index, slot_index
        self._biases: dict[tuple[int | None, torch.dtype], tuple[Tensor | None, Tensor]] = {}

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, prefix: tuple[Tensor, Tensor], window: int | None, cap: float
    ) -> Tensor:
        """See `interface.Layout`."""
        batch, heads, length, dim = query.shape
        kv_heads = key.shape[1]
        prefix_bias, own_bias = self._bias(window, query.dtype)
        rows = query.reshape(batch, kv_heads, -1, length, dim).transpose(0, 1)
        key, value = key.transpose(0, 1), value.transpose(0, 1)
        width = heads * (self._count + key.shape[2])
        limit = _BLOCK[query.device.type == "cpu"]
        if torch.is_grad_enabled() or batch * length * width <= limit:
            # With gradients everything is kept for the backward pass anyway.
            out = attend(rows.flatten(2, 3), key, value, *prefix, prefix_bias, own_bias, cap)
            return batch_first(out, heads, length)

        columns = max(1, min(length, limit // width))
        high = max(1, limit // (width * columns))
        whole = query.new_empty(batch, length, heads, value.shape[3])
        for row, column in itertools.product(range(0, batch, high), range(0, length, columns)):
            at, here = slice(row, row + high), slice(column, column + columns)
            part = rows[:, at, :, here]
            out = attend(
                part.flatten(2, 3),
                key[:, at],
                value[:, at],
                *prefix,
                None if prefix_bias is None else prefix_bias[at, :, here],
                own_bias[at, :, here],
                cap,
            )
            whole[at, here] = batch_first(out, heads, part.shape[3])
        return whole

    def _bias(self, window: int | None, dtype: torch.dtype) -> tuple[Tensor | None, Tensor]:
        """What is added to scores: to the prefix's `[B, 1, T, n]` (None for nothing), to own keys' `[B, 1, T, S]`."""
        if (window, dtype) not in self._biases:
            query, slot = self._query[:, :, None], self._slot[:, None, :]
            hidden = (slot > query) | (slot < 0)
            shared = None
            if window is not None:
                hidden |= query - slot >= window
                far = query + self._count - torch.arange(self._count, device=query.device) >= window
                shared = hiding(far, dtype)[:, None]
            self._biases[window, dtype] = (shared, hiding(hidden, dtype)[:, None])
        return self._biases[window, dtype]
