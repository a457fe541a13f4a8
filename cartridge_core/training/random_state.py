"""The random numbers of a training are its own."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def own_random_numbers(device: torch.device) -> Iterator[None]:
    """The process's own random state neither plays a part in the block nor is changed by it."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
