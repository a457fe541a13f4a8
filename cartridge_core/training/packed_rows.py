"""Examples in memory as the model reads them: packed rows, and which of their logits are compared with what."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cartridge_core.attention import Kernel, choose_kernel
from cartridge_core.selfstudy.conversation import Targets
from cartridge_core.training.config import TrainingConfig
from cartridge_core.training.loss import TeacherTokens
from cartridge_core.training.packing import pack

_LENGTHS = 4
"""Lengths of rows that FlexAttention is compiled for."""
_BLOCK = 128
"""Tokens of a block of FlexAttention's mask. Kernels for whole blocks need not look where they end."""


@dataclass(frozen=True)
class PackedRows:
    """Several examples behind one Cartridge, in R rows of T tokens.

    The model reads the rows behind each other as one sequence of N tokens: without the padding (`dense`), or with it
    (`flex`, which has a single row, of one of few lengths, because each length is compiled).

    Attributes:
        token_ids: `[R, T]` int64; padding is token 0.
        index: `[R, T]` int64, how many of the example's own tokens precede each.
        segment: `[R, T]` int64, which example of the row each token belongs to; -1 for padding.
        predicting: `[m]` int64, places in the flattened rows whose logits are compared with `teacher`.
        teacher: The distributions at these places.
        read_ids: `[1, N]` int64, what the model reads.
        read_predicting: `[m]` int64, `predicting` as places in that.
        members: Places of the packed examples among those that were given, in the order in which `teacher` has them.
        kernel: What computes the attention.
    """

    token_ids: Tensor
    index: Tensor
    segment: Tensor
    predicting: Tensor
    teacher: TeacherTokens
    read_ids: Tensor
    read_predicting: Tensor
    members: tuple[int, ...]
    kernel: Kernel = "dense"


def input_length(example: Targets) -> int:
    """Tokens of an example that the model has to read: those before the last one that is predicted."""
    return int(np.flatnonzero(example.assistant_mask)[-1])


def fitting(lengths: npt.NDArray[np.int64], config: TrainingConfig, max_positions: int) -> npt.NDArray[np.bool_]:
    """Which conversations can be trained on whole: in a row, and in the positions that the Cartridge leaves.

    Args:
        lengths: Tokens of each conversation.
        config: Says how long a row and the Cartridge are.
        max_positions: The model's window in tokens.
    """
    # An answer ends the conversation, and its last token is predicted but never read.
    in_row = lengths - 1 <= config.row_tokens if config.row_tokens is not None else np.full(len(lengths), True)
    return in_row & (config.num_tokens + lengths <= max_positions)


def pack_rows(
    examples: Sequence[Targets], max_tokens: int, device: torch.device | str = "cpu", *, kernel: Kernel = "dense"
) -> list[PackedRows]:
    """Lay examples out in rows. No example is cut.

    Under `dense` a row is as long as the longest example of the batch: padding costs little there, long rows much.
    Under `flex` a part is one row, filled as far as examples go and then to a quarter, half, three quarters or all of
    `max_tokens`: so few lengths are compiled once and for all, and the last part of a batch is seldom mostly padding.

    Args:
        examples: Each with at least one predicted token, none of them at the very start.
        max_tokens: Tokens of one `PackedRows`, padding included; the rows are parted so that it is kept. A single row
            may exceed it, for a longer example or to end with a block of FlexAttention.
        device: Where the tensors are put.
        kernel: What will compute the attention.

    Returns:
        The rows, in parts small enough to pass through the model at once.
    """
    lengths = [input_length(example) for example in examples]
    if kernel == "flex":
        rows = pack(lengths, max(*lengths, max_tokens))
        step = -(-max_tokens // (_LENGTHS * _BLOCK)) * _BLOCK
        return [
            _lay_out(examples, [row], -(-sum(lengths[place] for place in row) // step) * step, device, kernel)
            for row in rows
        ]
    capacity = max(lengths)
    rows = pack(lengths, capacity)
    per_part = max(max_tokens // capacity, 1)
    return [
        _lay_out(examples, rows[start : start + per_part], capacity, device, kernel)
        for start in range(0, len(rows), per_part)
    ]


def pack_batch(
    examples: Sequence[Targets], config: TrainingConfig, max_tokens: int, device: torch.device | str = "cpu"
) -> list[PackedRows]:
    """Lay a batch out as a run is configured (`pack_rows`), in parts of at most `max_tokens`.

    Every step's batch is packed anew, so that conversations meet others in each epoch.

    Raises:
        TrainingError: The configured attention cannot be trained with on this device.
    """
    kernel = choose_kernel(config.attention, device)
    return pack_rows(examples, max_tokens, device, kernel=kernel)


def _lay_out(
    examples: Sequence[Targets],
    rows: Sequence[Sequence[int]],
    capacity: int,
    device: torch.device | str,
    kernel: Kernel,
) -> PackedRows:
    """`rows` are places in `examples`."""
    shape = (len(rows), capacity)
    token_ids, index = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    segment = np.full(shape, -1, np.int64)
    predicting = []
    for row, members in enumerate(rows):
        start = 0
        for member, example in enumerate(examples[place] for place in members):
            length = input_length(example)
            here = slice(start, start + length)
            token_ids[row, here] = example.token_ids[:length]
            index[row, here] = np.arange(length)
            segment[row, here] = member
            # A token is predicted by the logits one place before it.
            predicting.append(row * capacity + start + np.flatnonzero(example.assistant_mask) - 1)
            start += length
    places = tuple(place for members in rows for place in members)
    packed = [examples[place] for place in places]
    teacher = TeacherTokens(
        _tensor(np.concatenate([e.topk_ids for e in packed]).astype(np.int64), device),
        _tensor(np.concatenate([e.topk_logprobs for e in packed]), device),
        _tensor(np.concatenate([e.tail_logprob for e in packed]), device),
    )
    predicted = np.concatenate(predicting)
    read = np.flatnonzero(segment.reshape(-1) >= 0) if kernel == "dense" else np.arange(segment.size)
    return PackedRows(
        token_ids=_tensor(token_ids, device),
        index=_tensor(index, device),
        segment=_tensor(segment, device),
        predicting=_tensor(predicted, device),
        teacher=teacher,
        read_ids=_tensor(token_ids.reshape(-1)[read][None], device),
        read_predicting=_tensor(np.searchsorted(read, predicted), device),
        members=places,
        kernel=kernel,
    )


def _tensor(array: npt.NDArray[np.generic], device: torch.device | str) -> Tensor:
    return torch.from_numpy(array).to(device)
