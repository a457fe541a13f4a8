"""Size of the reference model."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """Size of the reference model."""

    vocab_size: int
    hidden_size: int = 256
    intermediate_size: int = 512
    num_layers: int = 4
    num_heads: int = 8
    num_kv_heads: int = 2
    head_dim: int = 64
    max_positions: int = 4096
    rope_theta: float = 100_000_000.0
    """So slow that half of a head's dimensions compare words alike over a whole window."""
