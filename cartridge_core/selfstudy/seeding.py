"""Seeds of single samples, so that a sample is the same whenever and wherever it is made."""

import hashlib


def derive_seed(*parts: int | str) -> int:
    """A seed in [0, 2^63) that depends on every part and on nothing else."""
    text = "\0".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


GOLDEN_RATIO = 0.6180339887498949


def spread_position(offset: float, index: int) -> float:
    """The index-th of evenly spread positions in [0, 1) (Kronecker sequence of the golden ratio).

    However many are taken, the gaps between neighbours differ by a small factor only; independent draws leave parts of
    a corpus unvisited.
    """
    return (offset + index * GOLDEN_RATIO) % 1.0
