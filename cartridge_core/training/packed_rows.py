"""Examples in memory as the model reads them: packed rows, and which of their logits are compared with what."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cartridge_core.selfstudy.conversation import Targets
from cartridge_core.training.loss import TeacherTokens
from cartridge_core.training.packing import pack


@dataclass(frozen=True)
class PackedRows:
    """Several examples behind one Cartridge, in R rows of T tokens.

    Attributes:
        token_ids: `[R, T]` int64; padding is token 0.
        index: `[R, T]` int64, how many of the example's own tokens precede each.
        segment: `[R, T]` int64, which example each token belongs to; -1 for padding.
        predicting: `[m]` int64, places in the flattened rows whose logits are compared with `teacher`.
        teacher: The distributions at these places.
    """

    token_ids: Tensor
    index: Tensor
    segment: Tensor
    predicting: Tensor
    teacher: TeacherTokens


def input_length(example: Targets) -> int:
    """Tokens of an example that the model has to read: those before the last one that is predicted."""
    return int(np.flatnonzero(example.assistant_mask)[-1])


def pack_rows(examples: Sequence[Targets], max_tokens: int, device: torch.device | str = "cpu") -> list[PackedRows]:
    """Lay examples out in rows as long as the longest of them.

    Args:
        examples: Each with at least one predicted token, none of them at the very start.
        max_tokens: Tokens of one `PackedRows`, padding included; the rows are parted so that it is kept. A single row
            may exceed it.
        device: Where the tensors are put.

    Returns:
        The rows, in parts small enough to pass through the model at once.
    """
    lengths = [input_length(example) for example in examples]
    capacity = max(lengths)
    rows = pack(lengths, capacity)
    per_part = max(max_tokens // capacity, 1)
    return [
        _lay_out([[examples[i] for i in row] for row in rows[start : start + per_part]], capacity, device)
        for start in range(0, len(rows), per_part)
    ]


def _lay_out(rows: Sequence[Sequence[Targets]], capacity: int, device: torch.device | str) -> PackedRows:
    shape = (len(rows), capacity)
    token_ids, index = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    segment = np.full(shape, -1, np.int64)
    predicting = []
    for row, members in enumerate(rows):
        start = 0
        for member, example in enumerate(members):
            length = input_length(example)
            place = slice(start, start + length)
            token_ids[row, place] = example.token_ids[:length]
            index[row, place] = np.arange(length)
            segment[row, place] = member
            # A token is predicted by the logits one place before it.
            predicting.append(row * capacity + start + np.flatnonzero(example.assistant_mask) - 1)
            start += length
    packed = [example for members in rows for example in members]
    teacher = TeacherTokens(
        _tensor(np.concatenate([e.topk_ids for e in packed]).astype(np.int64), device),
        _tensor(np.concatenate([e.topk_logprobs for e in packed]), device),
        _tensor(np.concatenate([e.tail_logprob for e in packed]), device),
    )
    places = _tensor(np.concatenate(predicting), device)
    return PackedRows(_tensor(token_ids, device), _tensor(index, device), _tensor(segment, device), places, teacher)


def _tensor(array: npt.NDArray[np.generic], device: torch.device | str) -> Tensor:
    return torch.from_numpy(array).to(device)
