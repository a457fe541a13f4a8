"""How this process joins the others that `torchrun` has started."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch

from cartridge_core.errors import TrainingError
from cartridge_core.training.ranks import Ranks

PATIENCE = timedelta(minutes=30)
"""Longest wait for another rank; one may have to fetch the model first. A rank that dies is noticed at once."""


@contextmanager
def process_group(device: str, lockstep: bool = False) -> Iterator[tuple[Ranks, str]]:
    """Join the run's processes: NCCL and one GPU each where there are GPUs, else gloo on the CPU.

    Args:
        device: "auto", "cpu" or "cuda".
        lockstep: Whether forward passes must be made by all ranks together.

    Yields:
        This process among them, and the device it is to use. Without `torchrun` it is alone.

    Raises:
        TrainingError: There are more processes on this machine than GPUs.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Ranks(), device
        return
    rank, local = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    if device.startswith("cuda") or (device == "auto" and torch.cuda.is_available()):
        if local >= torch.cuda.device_count():
            raise TrainingError(
                f"Process {local} of this machine has no GPU: there are {torch.cuda.device_count()}.",
                "Start as many processes as the machine has GPUs, or train on the CPU (CARTRIDGE_DEVICE=cpu).",
            )
        torch.cuda.set_device(local)
        backend, place = "nccl", f"cuda:{local}"
    else:
        backend, place = "gloo", "cpu"
    torch.distributed.init_process_group(backend, timeout=PATIENCE)
    yield Ranks(rank, count, lockstep), place
    # Only here: where this process fails, taking leave of the others would wait for them.
    torch.distributed.destroy_process_group()
