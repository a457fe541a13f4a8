"""The layout of training on a GPU: packed rows as one sequence, through FlexAttention and a block mask."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from torch.nn.functional import pad

Attend = Callable[..., Tensor]


_COMPILER = {"recompile_limit": 128, "fail_on_recompile_limit_hit": True}
"""Every length of a row, window, cap and Cartridge has its kernels, with gradients and without. Past torch's own limit
of eight it would go on uncompiled, with all scores in memory."""

_LEAST_WIDTH = 16
"""Of a head, in the compiled kernels; only toy models are below it."""


@cache
def _compiled() -> Attend:
    # Static shapes: rows have few lengths, and kernels that know them are faster.
    attend: Attend = torch.compile(flex_attention, dynamic=False)
    return attend


class FlexLayout:
    """Texts behind each other in one row, padding included, so that few shapes come up.

    Blocks of 128 x 128 scores in which nothing is seen are skipped: a text costs its own length squared, and the prefix
    once for each token. FlexAttention: arXiv 2412.05496.
    """

    scale_keys = True

    def __init__(self, num_prefix_tokens: int, index: Tensor, segment: Tensor) -> None:
        """Lay a row out.

        Args:
            num_prefix_tokens: Length n of the prefix.
            index: `[1, T]`, how many of its text's own tokens precede each token.
            segment: `[1, T]`, which text each token belongs to; -1 for padding.
        """
        self._count = num_prefix_tokens
        # Unpacked, not indexed: further rows must not be lost without a word.
        (self._index,), (self._segment,) = index, segment
        self._masks: dict[int | None, BlockMask] = {}

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, prefix: tuple[Tensor, Tensor], window: int | None, cap: float
    ) -> Tensor:
        """See `interface.Layout`; B is 1, T and S are all places of the row."""
        keys, values = (
            _wide(torch.cat((side[None], own), dim=2)) for side, own in zip(prefix, (key, value), strict=True)
        )
        compiled = query.device.type == "cuda"
        attend: Any = _compiled() if compiled else flex_attention
        with torch._dynamo.config.patch(_COMPILER):
            out: Tensor = attend(
                _wide(query.contiguous()),
                keys,
                values,
                score_mod=_capped(cap) if cap else None,
                block_mask=self._mask(window, compiled),
                scale=1.0,
                enable_gqa=query.shape[1] != key.shape[1],
            )
        return out[..., : value.shape[3]].transpose(1, 2).contiguous()

    def _mask(self, window: int | None, compiled: bool) -> BlockMask:
        if window not in self._masks:
            size = len(self._index)
            self._masks[window] = create_block_mask(
                _visible(self._count, self._index, self._segment, window),
                B=None,
                H=None,
                Q_LEN=size,
                KV_LEN=self._count + size,
                device=self._index.device,
                _compile=compiled,
            )
        return self._masks[window]


def _wide(heads: Tensor) -> Tensor:
    """Heads narrower than the kernels take, filled up with zeros: neither scores nor what is mixed change."""
    return pad(heads, (0, max(0, _LEAST_WIDTH - heads.shape[3])))


def _visible(count: int, index: Tensor, segment: Tensor, window: int | None) -> Callable[..., Tensor]:
    # Keys of the prefix get a text of their own, so that no index is out of range.
    owner = torch.cat((segment.new_full((count,), -2), segment))
    place = torch.cat((torch.arange(count, device=index.device) - count, index))

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        # A padding query sees padding before it, itself included: a query that saw nothing would make NaN.
        own = (owner[key] == segment[query]) & (key - count <= query)
        seen = (key < count) | own
        if window is not None:
            near = (index[query] - place[key] < window) & seen
            # Padding has no place in a text.
            return near | (own & (segment[query] < 0))
        return seen

    return visible


@cache
def _capped(cap: float) -> Callable[..., Tensor]:
    def capped(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return cap * torch.tanh(score / cap)

    return capped
