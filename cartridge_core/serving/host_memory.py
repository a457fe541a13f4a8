"""Host memory for tensors that stay: page-locked where a GPU copies from it, in huge pages elsewhere."""

import math
import mmap
from collections.abc import Iterable

import torch
from torch import Tensor

_ALIGNED = 64
"""Bytes at whose multiples a tensor begins."""


class HostMemory:
    """Room for tensors of known shapes.

    Without a GPU it is one block in huge pages: fresh memory comes in pages of 4 KiB otherwise, and the faults of a few
    hundred megabytes take longer than the copying. Page-locked memory is torch's, which keeps what was freed for the
    next. The block goes with the last of its tensors.

    Args:
        shapes: Of the tensors.
        dtype: Of all of them.
        pinned: Page-locked.
    """

    def __init__(self, shapes: Iterable[tuple[int, ...]], dtype: torch.dtype, pinned: bool) -> None:
        self._dtype, self._pinned, self._taken = dtype, pinned, 0
        size = sum(_room(shape, dtype) for shape in shapes)
        self._block = None if pinned or not size else _huge_block(size)

    def take(self, shape: tuple[int, ...]) -> Tensor:
        """An empty tensor of one of the shapes; each is to be taken once."""
        if self._block is None:
            return torch.empty(shape, dtype=self._dtype, pin_memory=self._pinned)
        start, self._taken = self._taken, self._taken + _room(shape, self._dtype)
        used = math.prod(shape) * self._dtype.itemsize
        return self._block[start : start + used].view(self._dtype).view(shape)


def _room(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    return -(-math.prod(shape) * dtype.itemsize // _ALIGNED) * _ALIGNED


def _huge_block(size: int) -> Tensor:
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(size, dtype=torch.uint8)
    block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    block.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(block, dtype=torch.uint8)
