"""Symmetric quantisation of keys and values to eight bits: int8, or floating point with four exponent bits (e4m3).

Keys have channels that are large for every token, so they get one scale a channel; values have none, so they get one
scale a token (KIVI, arXiv 2402.02750; KVQuant, arXiv 2401.18079).
"""

import torch
from torch import Tensor

from cartridge_core.errors import ArtifactError
from cartridge_core.manifest import STORAGE, StorageDType

KEY_AXIS, VALUE_AXIS = -2, -1
"""Axis of `[num_kv_heads, num_tokens, head_dim]` that shares a scale: a key's tokens, a value's channels."""

_LARGEST: dict[str, float] = {"int8": 127.0, "float8_e4m3fn": 448.0}
"""Largest magnitude of each type that is used; int8's -128 would have no counterpart."""


def storage_dtype(name: str) -> StorageDType:
    """The element type of a user's word for it.

    Raises:
        ArtifactError: There is no such storage.
    """
    if name not in STORAGE:
        raise ArtifactError(f"There is no quantised storage {name!r}.", f"Choose one of {', '.join(STORAGE)}.")
    return STORAGE[name]


def quantize(exact: Tensor, storage: StorageDType, axis: int) -> tuple[Tensor, Tensor]:
    """Round a tensor to eight bits.

    Args:
        exact: Keys or values `[num_kv_heads, num_tokens, head_dim]` of any floating type.
        storage: Type to round to, to nearest, ties to even.
        axis: `KEY_AXIS` or `VALUE_AXIS`.

    Returns:
        The tensor in that type, and its fp32 scales without the axis: `[num_kv_heads, head_dim]` for keys,
        `[num_kv_heads, num_tokens]` for values. The product of both is off by at most half a step of the type.
    """
    wide = exact.to(torch.float32)
    largest = _LARGEST[storage]
    # Never zero, so that a channel of zeros divides to zeros.
    scale = (wide.abs().amax(dim=axis) / largest).clamp(min=torch.finfo(torch.float32).tiny)
    scaled = (wide / scale.unsqueeze(axis)).clamp(-largest, largest)
    small = scaled.round().to(torch.int8) if storage == "int8" else scaled.to(torch.float8_e4m3fn)
    return small, scale


def dequantize(small: Tensor, scale: Tensor, axis: int, dtype: torch.dtype) -> Tensor:
    """Keys or values again, in the base model's type.

    Args:
        small: As `quantize` gave it.
        scale: Its scales.
        axis: The axis they were taken over.
        dtype: Type of the result; the product is taken in fp32.
    """
    return (small.to(torch.float32) * scale.unsqueeze(axis)).to(dtype)
