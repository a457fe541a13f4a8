"""A batch whose examples were made by several ranks, put together for all of them."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cartridge_core.selfstudy.conversation import Targets
from cartridge_core.training.ranks import Ranks


def shared_batch(
    turns: Sequence[Sequence[int]], own: Mapping[int, Targets], top_k: int, ranks: Ranks, device: torch.device
) -> list[Targets]:
    """Every rank's examples on every rank, to the bit: sums in which each puts zeros at the others' places.

    Args:
        turns: Tokens in front of each answer of the batch, the same on every rank.
        own: This rank's examples by their place in the batch; each place is one rank's.
        top_k: Likeliest tokens of each of the teacher's distributions.
        ranks: Who exchanges.
        device: Where the ranks sum.

    Returns:
        The batch.
    """
    lengths = np.zeros(len(turns), np.int64)
    for place, example in own.items():
        lengths[place] = len(example.tail_logprob)
    (lengths,) = _summed([lengths], ranks, device)
    starts = np.cumsum([0, *lengths])
    answers, ids = np.zeros(starts[-1], np.int64), np.zeros((starts[-1], top_k), np.int64)
    logprobs, tail = np.zeros((starts[-1], top_k), np.float32), np.zeros(starts[-1], np.float32)
    places = [slice(start, stop) for start, stop in pairwise(starts)]
    for place, example in own.items():
        here = places[place]
        answers[here] = example.token_ids[example.assistant_mask]
        ids[here], logprobs[here], tail[here] = example.topk_ids, example.topk_logprobs, example.tail_logprob
    answers, ids = _summed([answers, ids], ranks, device)
    logprobs, tail = _summed([logprobs, tail], ranks, device)
    return [
        Targets(
            token_ids=np.concatenate((turn, answers[here])).astype(np.int32),
            assistant_mask=np.arange(len(turn) + here.stop - here.start) >= len(turn),
            topk_ids=ids[here].astype(np.int32),
            topk_logprobs=logprobs[here],
            tail_logprob=tail[here],
        )
        for turn, here in zip(turns, places, strict=True)
    ]


def _summed(arrays: Sequence[npt.NDArray[Any]], ranks: Ranks, device: torch.device) -> list[npt.NDArray[Any]]:
    """The arrays' sums over the ranks; all of one type."""
    tensors = [torch.from_numpy(array).to(device) for array in arrays]
    ranks.sum(tensors)
    return [tensor.cpu().numpy() for tensor in tensors]
