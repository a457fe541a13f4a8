"""What a teacher says at every token of answers that somebody else wrote."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cartridge_core.inference.decoding import top_and_tail
from cartridge_core.models import BaseModel
from cartridge_core.prefix_kv import PrefixKV
from cartridge_core.selfstudy.conversation import Targets
from cartridge_core.training.distillation import CHUNK_TOKENS
from cartridge_core.training.head import head_of, is_parted
from cartridge_core.training.packed_attention import packed_hidden, packed_logits
from cartridge_core.training.packed_rows import PackedRows, pack_rows


@torch.no_grad()
def teacher_targets(
    base: BaseModel,
    prefix: PrefixKV,
    turns: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    top_k: int,
    max_tokens: int,
    chunk_tokens: int = CHUNK_TOKENS,
) -> list[Targets]:
    """The teacher's distributions, top k and tail, at every token of some answers behind one prefix.

    Logits are reduced a chunk of tokens at a time: of the vocabulary's width there is never more than that in memory.
    A head of an unknown kind, or one that is parted over processes, is applied to a part's answers at once.

    Args:
        base: The teacher.
        prefix: What it has read, on its device and in its type.
        turns: Tokens in front of each answer.
        answers: Tokens of each answer, at least one.
        top_k: Likeliest tokens that are kept.
        max_tokens: Tokens that pass through the model at once; a single conversation may exceed it.
        chunk_tokens: Tokens whose logits are in memory at once.

    Returns:
        One for each answer, in their order.
    """
    starts = np.cumsum([0, *map(len, answers)])
    places = [np.arange(start, stop) for start, stop in pairwise(starts)]
    examples = [_numbered(*example) for example in zip(turns, answers, places, strict=True)]
    ids = np.empty((starts[-1], top_k), np.int32)
    logprobs, tail = np.empty((starts[-1], top_k), np.float32), np.empty(starts[-1], np.float32)
    for rows in pack_rows(examples, max_tokens, base.device):
        # Packing puts examples into an order of its own: each token's number says where it belongs.
        order = rows.teacher.topk_ids[:, 0].cpu().numpy()
        start = 0
        for logits in _logits(base, prefix, rows, chunk_tokens):
            here = order[start : start + len(logits)]
            found = top_and_tail(logits.float(), top_k)
            ids[here], logprobs[here], tail[here] = (part.cpu().numpy() for part in found)
            start += len(logits)
    return [
        Targets(example.token_ids, example.assistant_mask, ids[place], logprobs[place], tail[place])
        for example, place in zip(examples, places, strict=True)
    ]


def _numbered(turn: Sequence[int], answer: Sequence[int], numbers: npt.NDArray[np.int64]) -> Targets:
    """A conversation that has its answer tokens' numbers where the teacher's likeliest tokens will be."""
    nothing = np.zeros(len(answer), np.float32)
    return Targets(
        token_ids=np.array([*turn, *answer], np.int32),
        assistant_mask=np.arange(len(turn) + len(answer)) >= len(turn),
        topk_ids=numbers.astype(np.int32)[:, None],
        topk_logprobs=nothing[:, None],
        tail_logprob=nothing,
    )


def _logits(base: BaseModel, prefix: PrefixKV, rows: PackedRows, chunk_tokens: int) -> Iterator[Tensor]:
    """Logits `[<= chunk_tokens, vocabulary]` at the rows' answers, one chunk after the other."""
    head = None if is_parted(base) else head_of(base)
    if head is None:
        yield from packed_logits(base, prefix, rows).split(chunk_tokens)
    else:
        yield from map(head, packed_hidden(base, prefix, rows).split(chunk_tokens))
