"""The layout of training: rows that hold several texts, blind to each other, computed densely."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cartridge_core.attention.dense import attend, hiding


class PackedLayout:
    """The model reads the texts of all rows behind each other, without padding; attention sees them in their rows.

    Padding is wanted by attention alone, which is the smaller part of the work: nothing else is computed on it.
    """

    scale_keys = True

    def __init__(self, num_prefix_tokens: int, index: Tensor, segment: Tensor) -> None:
        """Lay rows out.

        Args:
            num_prefix_tokens: Length n of the prefix.
            index: `[R, T]`, how many of its text's own tokens precede each token.
            segment: `[R, T]`, which text of the row each token belongs to; -1 for padding.
        """
        self._count, self._index, self._segment = num_prefix_tokens, index, segment
        real = segment.flatten() >= 0
        self._read = real.nonzero()[:, 0]
        # Where in the model's sequence each place of the rows is; padding points at the first token.
        self._place = (real.cumsum(0) - 1).masked_fill_(~real, 0)
        self._padding = (~real).nonzero()[:, 0]
        self._biases: dict[tuple[int | None, torch.dtype], tuple[Tensor | None, Tensor]] = {}
        self._tables: dict[tuple[int, int], tuple[Tensor, Tensor, Tensor]] = {}

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, prefix: tuple[Tensor, Tensor], window: int | None, cap: float
    ) -> Tensor:
        """See `interface.Layout`; B is 1, T and S are the tokens of all rows."""
        heads, kv_heads, dim = query.shape[1], key.shape[1], value.shape[3]
        rows = len(self._index)
        shape = (kv_heads, rows, -1, query.shape[3])
        own_key, own_value = (
            _ToRows.apply(side, *self._table(kv_heads, kv_heads)).view(shape) for side in (key, value)
        )
        table = self._table(heads, kv_heads)
        out = attend(
            _ToRows.apply(query, *table).view(shape), own_key, own_value, *prefix, *self._bias(window, query.dtype), cap
        )
        back: Tensor = _FromRows.apply(out.view(-1, dim), *table)
        return back.view(1, -1, heads, dim)

    def _table(self, heads: int, kv_heads: int) -> tuple[Tensor, Tensor, Tensor]:
        """For vectors of all tokens' heads `[N * heads, d]`: where each place of the rows is found, and the way back.

        Places are in the order of `attend`: KV head, row, head of the group, token.

        Returns:
            `[heads * R * T]` indices to the rows, `[N * heads]` indices from them, and the places of padding.
        """
        if (heads, kv_heads) not in self._tables:
            (rows, length), group = self._index.shape, heads // kv_heads
            place = self._place.view(1, rows, 1, length) * heads
            head = torch.arange(heads, device=place.device).view(kv_heads, 1, group, 1)
            spot = torch.arange(heads * rows * length, device=place.device).view(kv_heads, rows, group, length)
            by_token = spot.permute(1, 3, 0, 2).reshape(rows * length, heads)
            self._tables[heads, kv_heads] = (
                (place + head).flatten(),
                by_token[self._read].flatten(),
                by_token[self._padding].flatten(),
            )
        return self._tables[heads, kv_heads]

    def _bias(self, window: int | None, dtype: torch.dtype) -> tuple[Tensor | None, Tensor]:
        """What is added to scores: to the prefix's `[R, 1, T, n]` (None for nothing), to own tokens' `[R, 1, T, T]`."""
        if (window, dtype) not in self._biases:
            index, segment = self._index, self._segment
            distance = index[:, :, None] - index[:, None, :]
            hidden = (segment[:, :, None] != segment[:, None, :]) | (distance < 0)
            shared = None
            if window is not None:
                hidden |= distance >= window
                far = index[:, :, None] + self._count - torch.arange(self._count, device=index.device) >= window
                shared = hiding(far, dtype)[:, None]
            self._biases[window, dtype] = (shared, hiding(hidden, dtype)[:, None])
        return self._biases[window, dtype]


class _ToRows(torch.autograd.Function):
    """`[1, heads, N, d]` to `[places, d]`. Its gradient is a gathering too, which is faster than adding by index."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, there: Tensor, back: Tensor, padding: Tensor) -> Tensor:
        ctx.save_for_backward(back)
        ctx.shape = tokens.shape
        return tokens.transpose(1, 2).reshape(-1, tokens.shape[3]).index_select(0, there)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (back,) = ctx.saved_tensors
        _, heads, count, dim = ctx.shape
        return gradient.index_select(0, back).view(1, count, heads, dim).transpose(1, 2), None, None, None


class _FromRows(torch.autograd.Function):
    """`[places, d]` to `[N * heads, d]`; padding gets no gradient."""

    @staticmethod
    def forward(ctx: Any, places: Tensor, there: Tensor, back: Tensor, padding: Tensor) -> Tensor:
        ctx.save_for_backward(there, padding)
        return places.index_select(0, back)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        there, padding = ctx.saved_tensors
        return gradient.index_select(0, there).index_fill_(0, padding, 0), None, None, None
