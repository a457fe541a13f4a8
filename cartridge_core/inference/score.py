"""Scoring: how likely given texts are behind a prefix."""

from collections.abc import Sequence

import torch
from torch import Tensor

from cartridge_core.attention import behind
from cartridge_core.cartridge import PrefixKV
from cartridge_core.errors import InferenceError
from cartridge_core.inference.prefix import empty_prefix
from cartridge_core.models import BaseModel


@torch.inference_mode()
def logits_behind(base: BaseModel, prefix: PrefixKV | None, token_ids: Sequence[Sequence[int]]) -> list[Tensor]:
    """Next-token logits at every token of each text.

    Args:
        base: The model.
        prefix: What precedes every text; None for nothing.
        token_ids: Texts, each at least one token.

    Returns:
        One fp32 tensor `[tokens, vocabulary]` a text.

    Raises:
        InferenceError: A text is empty or does not fit the model.
    """
    prefix = empty_prefix(base) if prefix is None else prefix.to(base.device, base.dtype)
    lengths = [len(ids) for ids in token_ids]
    room = base.max_positions - prefix.next_position
    for row, length in enumerate(lengths):
        if not 0 < length <= room:
            raise InferenceError(
                f"Text {row} has {length} tokens; {base.identity.id} has room for 1 to {room} behind this prefix.",
                "Shorten it, or what precedes it.",
            )
    longest = max(lengths)
    ids = torch.tensor([[*row, *([0] * (longest - len(row)))] for row in token_ids], device=base.device)
    index = torch.arange(longest, device=base.device).expand(len(lengths), -1)
    slots = torch.where(index < torch.tensor(lengths, device=base.device)[:, None], index, -1)
    with behind(prefix, base.layer_specs, index, slots) as placed:
        logits = base.model(input_ids=ids, use_cache=False, **placed).logits
    return [logits[row, :length].float() for row, length in enumerate(lengths)]


def token_logprobs(
    base: BaseModel,
    prefix: PrefixKV | None,
    token_ids: Sequence[Sequence[int]],
    mask: Sequence[Sequence[bool]],
    batch_size: int = 16,
) -> list[Tensor]:
    """Log-probs of chosen tokens given all before them (teacher-forced, temperature 1).

    Args:
        base: The model.
        prefix: What precedes every text; None for nothing.
        token_ids: Texts.
        mask: True at the tokens to score, shaped as `token_ids`; a text's first token cannot be scored.
        batch_size: Texts computed at once.

    Returns:
        One fp32 tensor `[scored tokens]` a text, on the CPU.

    Raises:
        InferenceError: A mask does not fit its text, or a text does not fit the model.
    """
    for row, (ids, chosen) in enumerate(zip(token_ids, mask, strict=True)):
        if len(ids) != len(chosen) or (chosen and chosen[0]):
            raise InferenceError(
                f"The mask of text {row} has {len(chosen)} entries for {len(ids)} tokens, or marks the first token.",
                "Mark any tokens but the first, one entry a token.",
            )
    scores: list[Tensor] = []
    for start in range(0, len(token_ids), batch_size):
        texts = token_ids[start : start + batch_size]
        for logits, ids, chosen in zip(
            logits_behind(base, prefix, texts), texts, mask[start : start + batch_size], strict=True
        ):
            picked = torch.tensor(chosen[1:], dtype=torch.bool, device=logits.device)
            targets = torch.tensor(ids[1:], device=logits.device)[picked]
            logprobs = logits[:-1][picked].log_softmax(dim=-1)
            scores.append(logprobs.gather(1, targets[:, None])[:, 0].cpu())
    return scores
