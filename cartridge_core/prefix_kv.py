"""Keys and values in front of a batch: what inference reads, training changes and a Cartridge stores."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cartridge_core.errors import ArtifactError


@dataclass(frozen=True)
class PrefixKV:
    """Keys and values that precede every row of a batch: a prefilled text or a Cartridge.

    Attributes:
        keys: Per layer `[num_kv_heads, num_tokens, head_dim]` after RoPE, or None for a layer without its own cache.
        values: As `keys`.
        next_position: Position of the first token that follows.
    """

    keys: Sequence[Tensor | None]
    values: Sequence[Tensor | None]
    next_position: int

    def __post_init__(self) -> None:
        if len(self.keys) != len(self.values):
            raise ArtifactError(f"A prefix has {len(self.keys)} layers of keys and {len(self.values)} of values.")
        lengths = set()
        for index, (key, value) in enumerate(zip(self.keys, self.values, strict=True)):
            if (key is None) != (value is None):
                raise ArtifactError(f"Layer {index} of a prefix has keys or values but not both.")
            if key is None or value is None:
                continue
            if key.ndim != 3 or key.shape != value.shape:
                raise ArtifactError(
                    f"Layer {index} of a prefix has keys {tuple(key.shape)} and values {tuple(value.shape)}.",
                    "Give both as [num_kv_heads, num_tokens, head_dim].",
                )
            lengths.add(key.shape[1])
        if len(lengths) != 1:
            raise ArtifactError(f"The layers of a prefix hold different numbers of tokens: {sorted(lengths)}.")

    @property
    def num_tokens(self) -> int:
        """Tokens in the prefix."""
        return next(key.shape[1] for key in self.keys if key is not None)

    def kv_bytes(self, dtype: torch.dtype) -> int:
        """Bytes of all keys and values if they were held in `dtype`."""
        return sum(2 * key.numel() * dtype.itemsize for key in self.keys if key is not None)

    def first(self, num_tokens: int) -> "PrefixKV":
        """The first `num_tokens` tokens; a copy of a causal prefill's head is that head's prefill.

        Raises:
            ArtifactError: The prefix is shorter than that, or the number is not positive.
        """
        if not 0 < num_tokens <= self.num_tokens:
            raise ArtifactError(f"Cannot take {num_tokens} tokens from a prefix of {self.num_tokens}.")
        following = self.next_position if num_tokens == self.num_tokens else num_tokens
        return PrefixKV(
            [None if key is None else key[:, :num_tokens].clone() for key in self.keys],
            [None if value is None else value[:, :num_tokens].clone() for value in self.values],
            following,
        )

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "PrefixKV":
        """The same prefix on another device or in another type."""
        return PrefixKV(
            [None if key is None else key.to(device=device, dtype=dtype) for key in self.keys],
            [None if value is None else value.to(device=device, dtype=dtype) for value in self.values],
            self.next_position,
        )
