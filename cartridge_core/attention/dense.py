"""Attention over a shared prefix and a row's own keys, in matrix products. The core of all layouts.

Rows are given with KV heads first, so that all rows' queries of one head meet its prefix in a single product. With G
query heads for each KV head, `L = G * T` queries of a row meet its S own keys and the n keys of the prefix.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_LANES = 32
"""Half-precision softmax on a CPU takes twice as long over rows that do not fill its vector registers."""


class _Attention(torch.autograd.Function):
    """`attend` with its gradient written out: nothing is kept but the weights, and nothing is computed for nobody."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        prefix_key: Tensor,
        prefix_value: Tensor,
        prefix_bias: Tensor | None,
        own_bias: Tensor,
        cap: float,
    ) -> Tensor:
        weights, bent = _weights(query, key, prefix_key, prefix_bias, own_bias, cap)
        ctx.save_for_backward(query, key, value, prefix_key, prefix_value, weights, bent)
        return _mix(weights, value, prefix_value)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, prefix_key, prefix_value, weights, bent = ctx.saved_tensors
        need_query, need_key, need_value, need_prefix_key, need_prefix_value = ctx.needs_input_grad[:5]
        to_prefix, to_own = _copied(weights, prefix_key.shape[1], key.shape[2])
        flat = gradient.flatten(1, 2)
        d_value = to_own.transpose(2, 3) @ gradient if need_value else None
        d_prefix_value = to_prefix.transpose(1, 2) @ flat if need_prefix_value else None
        if not (need_query or need_key or need_prefix_key):
            return None, None, d_value, None, d_prefix_value, None, None, None

        d_weights = _joined(flat @ prefix_value.transpose(1, 2), gradient @ value.transpose(2, 3), weights.shape[3], 0)
        # Columns that only fill a register have weight 0, so whatever stands there adds nothing.
        d_scores = torch.ops.aten._softmax_backward_data(d_weights, weights, -1, weights.dtype)
        if bent is not None:
            # d/ds of c tanh(s / c)
            d_scores.mul_(1 - bent.square())
        d_to_prefix, d_to_own = _copied(d_scores, prefix_key.shape[1], key.shape[2])
        d_query = (d_to_prefix @ prefix_key).view_as(query) + d_to_own @ key if need_query else None
        d_key = d_to_own.transpose(2, 3) @ query if need_key else None
        d_prefix_key = d_to_prefix.transpose(1, 2) @ query.flatten(1, 2) if need_prefix_key else None
        return d_query, d_key, d_value, d_prefix_key, d_prefix_value, None, None, None


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prefix_key: Tensor,
    prefix_value: Tensor,
    prefix_bias: Tensor | None,
    own_bias: Tensor,
    cap: float = 0.0,
) -> Tensor:
    """Softmax attention of R rows over one prefix and each row's own keys.

    Args:
        query: `[kv heads, R, L, d]`, scaled.
        key: `[kv heads, R, S, d]`.
        value: `[kv heads, R, S, d]`.
        prefix_key: `[kv heads, n, d]`.
        prefix_value: `[kv heads, n, d]`.
        prefix_bias: `[R, 1, T, n]`, added to scores of the prefix; None where all of it is seen.
        own_bias: `[R, 1, T, S]`, added to scores of own keys.
        cap: Scores s become `cap * tanh(s / cap)` before biases (Gemma 2); 0 for none.

    Returns:
        `[kv heads, R, L, d]`.
    """
    if torch.is_grad_enabled():
        out: Tensor = _Attention.apply(query, key, value, prefix_key, prefix_value, prefix_bias, own_bias, cap)
        return out
    weights, _ = _weights(query, key, prefix_key, prefix_bias, own_bias, cap)
    return _mix(weights, value, prefix_value)


def attend_plainly(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, cap: float) -> Tensor:
    """Attention without a prefix, for models that cap their scores.

    Args:
        query: `[B, heads, T, d]`, scaled.
        key: `[B, kv heads, S, d]`.
        value: `[B, kv heads, S, d]`.
        mask: `[B, 1, T, S]`, True for what is seen or a bias; None for causal, the last query with the last key.
        cap: As `attend`.

    Returns:
        `[B, T, heads, d]`.
    """
    batch, heads, length, _ = query.shape
    kv_heads, slots = key.shape[1:3]
    if mask is None:
        mask = torch.ones(length, slots, dtype=torch.bool, device=query.device).tril(slots - length)[None, None]
    bias = hiding(~mask, query.dtype) if mask.dtype == torch.bool else mask
    nothing = key.new_empty(kv_heads, 0, key.shape[3])
    out = attend(
        query.reshape(batch, kv_heads, -1, query.shape[3]).transpose(0, 1),
        key.transpose(0, 1),
        value.transpose(0, 1),
        nothing,
        nothing,
        None,
        bias.expand(batch, -1, -1, -1),
        cap,
    )
    return batch_first(out, heads, length)


def hiding(hidden: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to scores so that `hidden` ones count nothing."""
    # The lowest finite number, not -inf: a padding query that sees nothing must not make NaN.
    return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, torch.finfo(dtype).min)


def batch_first(out: Tensor, heads: int, length: int) -> Tensor:
    """`[kv heads, R, L, d]` as models expect it: `[R, T, heads, d]`."""
    kv_heads, rows, _, dim = out.shape
    parted = out.view(kv_heads, rows, heads // kv_heads, length, dim)
    # Some models view what they get.
    return parted.permute(1, 3, 0, 2, 4).reshape(rows, length, heads, dim).contiguous()


def _weights(
    query: Tensor, key: Tensor, prefix_key: Tensor, prefix_bias: Tensor | None, own_bias: Tensor, cap: float
) -> tuple[Tensor, Tensor | None]:
    """Attention weights `[kv heads, R, L, W]`, W at least n + S; and `tanh(s / cap)` where there is a cap."""
    kv_heads, rows, length, dim = query.shape
    queries, width = own_bias.shape[2], prefix_key.shape[1] + key.shape[2]
    if query.device.type == "cpu" and query.dtype != torch.float32:
        width = -(-width // _LANES) * _LANES
    shared = torch.bmm(query.reshape(kv_heads, rows * length, dim), prefix_key.transpose(1, 2))
    own = query @ key.transpose(2, 3)
    bent = None
    if cap:
        bent = _joined(shared, own, width, 0).div_(cap).tanh_()
        shared, own = _parts(bent * cap, prefix_key.shape[1], key.shape[2])
    own.unflatten(2, (-1, queries)).add_(own_bias)
    if prefix_bias is not None:
        shared.unflatten(1, (rows, -1, queries)).add_(prefix_bias)
    return _joined(shared, own, width, torch.finfo(own.dtype).min).softmax(dim=-1), bent


def _mix(weights: Tensor, value: Tensor, prefix_value: Tensor) -> Tensor:
    to_prefix, to_own = _parts(weights, prefix_value.shape[1], value.shape[2])
    out = to_own @ value
    out.flatten(1, 2).add_(torch.bmm(to_prefix, prefix_value))
    return out


def _joined(shared: Tensor, own: Tensor, width: int, filling: float) -> Tensor:
    """Columns for the prefix `[kv heads, R * L, n]`, for own keys `[kv heads, R, L, S]`, and filling up to `width`."""
    parts = [shared.view(*own.shape[:3], -1), own]
    missing = width - shared.shape[-1] - own.shape[-1]
    if missing:
        parts.append(own.new_full((1, 1, 1, 1), filling).expand(*own.shape[:3], missing))
    return torch.cat(parts, dim=-1)


def _parts(joined: Tensor, count: int, slots: int) -> tuple[Tensor, Tensor]:
    return joined[..., :count].flatten(1, 2), joined[..., count : count + slots]


def _copied(joined: Tensor, count: int, slots: int) -> tuple[Tensor, Tensor]:
    """As `_parts`, for products with the transpose: in half precision gaps between rows make those twice as slow."""
    to_prefix, to_own = _parts(joined, count, slots)
    return (to_prefix, to_own) if joined.dtype == torch.float32 else (to_prefix.contiguous(), to_own.contiguous())
