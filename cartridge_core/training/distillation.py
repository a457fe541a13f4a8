"""The loss of packed rows and its gradient, without the logits of all of them ever being in memory."""

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cartridge_core.cartridge import PrefixKV
from cartridge_core.models import BaseModel
from cartridge_core.training.head import Head, head_of, is_parted
from cartridge_core.training.loss import TeacherTokens, cross_entropy
from cartridge_core.training.packed_attention import packed_hidden, packed_logits
from cartridge_core.training.packed_rows import PackedRows

CHUNK_TOKENS = 512
"""Tokens whose logits are computed at once where nobody says."""


@dataclass(frozen=True)
class LossSum:
    """Sums over the predicted tokens of some rows.

    A mean belongs to whoever knows all rows: the caller divides by the tokens of all micro-batches and all ranks. A
    part's own mean would weigh short answers more.
    """

    loss: Tensor
    """Cross-entropy, a scalar with gradient (`loss.cross_entropy`)."""
    entropy: Tensor
    """The teacher's entropy: what the loss would be at best."""
    tokens: int
    """Predicted tokens."""


def packed_loss(
    base: BaseModel,
    prefix: PrefixKV,
    rows: PackedRows,
    *,
    temperature: float = 1.0,
    chunk_tokens: int = CHUNK_TOKENS,
) -> LossSum:
    """Loss of all examples of some rows.

    The head is applied to the predicted tokens only, `chunk_tokens` at a time, and what it makes is thrown away at
    once: of the vocabulary's width there is never more in memory than a chunk.

    Args:
        base: The model.
        prefix: What precedes every example; gradients flow to it.
        rows: The examples.
        temperature: As `loss.cross_entropy`.
        chunk_tokens: Tokens a chunk; a matter of memory and speed only.

    Raises:
        UnsupportedModelError: A layer of the model attends though the prefix holds no keys for it.
    """
    parted = is_parted(base)
    head = None if parted else head_of(base)
    if head is None and not parted:
        warnings.warn(
            f"The head of {base.identity.id} is of an unknown kind: the logits of a whole micro-batch are computed at "
            "once. Choose smaller micro-batches if memory runs out.",
            RuntimeWarning,
            stacklevel=2,
        )
    if head is None:
        # Of weights that are parted over ranks (FSDP2) only the model's own forward pass gathers the head's.
        loss = cross_entropy(packed_logits(base, prefix, rows), rows.teacher, temperature).sum()
    else:
        hidden = packed_hidden(base, prefix, rows)
        loss = chunked_cross_entropy(hidden, head, rows.teacher, temperature, chunk_tokens)
    return LossSum(loss, rows.teacher.entropy(temperature).sum(), len(rows.teacher))


def chunked_cross_entropy(
    hidden: Tensor, head: Head, teacher: TeacherTokens, temperature: float = 1.0, chunk_tokens: int = CHUNK_TOKENS
) -> Tensor:
    """`cross_entropy(head(hidden), teacher, temperature).sum()`, a chunk of tokens after the other.

    Args:
        hidden: `[m, hidden size]`; gradients flow to it.
        head: Frozen: nothing else gets a gradient.
        teacher: What the logits are compared with.
        temperature: As `loss.cross_entropy`.
        chunk_tokens: Tokens a chunk.

    Returns:
        A scalar, fp32.
    """
    loss: Tensor = _Chunked.apply(hidden, head, teacher, temperature, chunk_tokens)
    return loss


class _Chunked(torch.autograd.Function):
    """The gradient is taken while a chunk's logits are there, so that the head is not applied twice.

    Only a sum can do this: all tokens get the same gradient from above, by which theirs is multiplied later.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Head, teacher: TeacherTokens, temperature: float, chunk_tokens: int
    ) -> Tensor:
        wanted = ctx.needs_input_grad[0]
        total = hidden.new_zeros((), dtype=torch.float32)
        gradient = torch.empty_like(hidden) if wanted else None
        for start in range(0, len(hidden), chunk_tokens):
            here = slice(start, start + chunk_tokens)
            with torch.set_grad_enabled(wanted):
                part = hidden[here].detach().requires_grad_(wanted)
                loss = cross_entropy(head(part), teacher[here], temperature).sum()
            if gradient is not None:
                (gradient[here],) = torch.autograd.grad(loss, part)
            total += loss.detach()
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * above, None, None, None, None
