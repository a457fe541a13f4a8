"""Where a prompt's leading tokens lie in paged KV memory, and which part of a Cartridge one worker writes there."""

from collections.abc import Sequence

import torch
from torch import Tensor

NULL_BLOCK = 0
"""vLLM's block for positions that a sliding window has left behind; nothing is ever read from it."""


def slots(block_ids: Sequence[int], block_size: int, start: int, end: int) -> tuple[Tensor, Tensor]:
    """Slots of the positions in `[start, end)` that have a block.

    Args:
        block_ids: The request's blocks of one KV cache group, from position 0 on.
        block_size: Tokens in a block.
        start: First position.
        end: One past the last.

    Returns:
        Positions and their slots in the paged memory, int64, equally long.
    """
    positions = torch.arange(start, end)
    blocks = torch.tensor(block_ids, dtype=torch.int64)[positions // block_size]
    there = blocks != NULL_BLOCK
    positions, blocks = positions[there], blocks[there]
    return positions, blocks * block_size + positions % block_size


def local_heads(num_heads: int, rank: int, ranks: int) -> slice:
    """The KV heads that one tensor parallel worker holds.

    Args:
        num_heads: Of the whole layer.
        rank: Of the worker, from 0.
        ranks: Workers; where there are more than heads, neighbours hold the same one.
    """
    if ranks > num_heads:
        head = rank // (ranks // num_heads)
        return slice(head, head + 1)
    each = num_heads // ranks
    return slice(rank * each, (rank + 1) * each)
