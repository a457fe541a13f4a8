"""The processes that train one Cartridge together: who they are, and the sums they take."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """One process among those of a run; a run of one process is the default.

    Every rank holds the whole base model (or its shard, see `sharding`), the whole batch and the whole Cartridge, takes
    its share of the batch's examples, and makes the same update of the same summed gradient. Rank 0 alone writes.
    """

    rank: int = 0
    """This process, from 0."""
    count: int = 1
    """Processes in all."""
    lockstep: bool = False
    """Whether forward passes must be made by all ranks together, because each holds a part of the base model."""

    @property
    def first(self) -> bool:
        """Whether this process writes the run's files and tells its progress."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> list[T]:
        """This rank's share: every `count`-th item."""
        return list(items[self.rank :: self.count])

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors of one type and device by their sums over the ranks, in one exchange."""
        if self.count == 1 or not tensors:
            return
        flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
        torch.distributed.all_reduce(flat)
        start = 0
        for tensor in tensors:
            part = flat[start : start + tensor.numel()]
            tensor.detach().copy_(part.view_as(tensor))
            start += tensor.numel()

    def total(self, value: float, device: torch.device) -> float:
        """The sum of a number over the ranks."""
        if self.count == 1:
            return value
        # Accelerators without fp64 (MPS) have no process groups either.
        tensor = torch.tensor([value], dtype=torch.float64, device=device)
        torch.distributed.all_reduce(tensor)
        return float(tensor)

    def most(self, value: int, device: torch.device) -> int:
        """The largest of a number over the ranks."""
        if self.count == 1:
            return value
        tensor = torch.tensor([value], dtype=torch.int64, device=device)
        torch.distributed.all_reduce(tensor, op=torch.distributed.ReduceOp.MAX)
        return int(tensor)

    def from_first(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by those of rank 0."""
        if self.count == 1:
            return
        for tensor in tensors:
            torch.distributed.broadcast(tensor.detach(), src=0)


ALONE = Ranks()
"""A run of this process only."""
