"""Checkpoints of the reference implementation (HazyResearch/cartridges, `TrainableCache.save`).

A `.pt` file is a pickle: a dictionary of four `torch.nn.ParameterList`s, each one `[1, num_kv_heads, tokens, head_dim]`
tensor a layer, keys after RoPE. The frozen tokens come first; they were called `fixed_*` in June 2025 and are called
`frozen_*` since that August. Nothing in it says which model it belongs to.

It is read by torch's restricted unpickler, which knows tensors and plain containers. The one further class that such a
file names, `ParameterList`, is answered with an inert stand-in: no code of the file's choice runs, not even torch's.
"""

import pickle  # for the name of its error: nothing is unpickled with it
import re
import struct
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor
from torch.serialization import safe_globals

from cartridge_core.cartridge import PrefixKV
from cartridge_core.digest import sha256_file
from cartridge_core.errors import ArtifactError
from cartridge_core.exchange.foreign_prefix import ForeignPrefix
from cartridge_core.manifest import Origin

_PARAMETER_LIST = "torch.nn.modules.container.ParameterList"
_AGAIN = "Save the checkpoint again with `TrainableCache.save` of HazyResearch/cartridges."
# What a damaged or hostile pickle makes the unpickler raise; the interpreter's own limits are left to stop the process.
_UNREADABLE = (
    pickle.UnpicklingError,
    RuntimeError,
    OSError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    AssertionError,
    OverflowError,
    struct.error,
)


class _Parameters:
    """Stands in for `ParameterList`: the unpickler fills its attributes, and nothing calls anything."""


def read_checkpoint(path: Path) -> ForeignPrefix:
    """Read a reference checkpoint without running code in it.

    The number of frozen tokens is the frozen tensors' length in tokens (the reference's own loader takes their number
    of heads for it), 0 where there are none.

    Args:
        path: The `.pt` file.

    Raises:
        ArtifactError: It cannot be read, asks for classes that no checkpoint needs, or does not hold what one holds.
    """
    content = _load(path)
    names = {"trainable_keys", "trainable_values"}
    older, newer = ({f"{word}_keys", f"{word}_values"} for word in ("fixed", "frozen"))
    if not isinstance(content, dict) or set(content) not in (names | older, names | newer):
        held = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise ArtifactError(
            f"{path} holds {held}; a reference checkpoint holds trainable_* and frozen_* (or fixed_*) keys and values.",
            _AGAIN,
        )
    word = "fixed" if older <= set(content) else "frozen"
    sides = [_side(content, word, side, path) for side in ("keys", "values")]
    (keys, frozen), (values, other) = sides
    if frozen != other or [key.shape for key in keys] != [value.shape for value in values]:
        raise ArtifactError(f"Keys and values in {path} have different shapes.", _AGAIN)
    if len({key.shape[1] for key in keys}) != 1 or not keys[0].shape[1]:
        raise ArtifactError(f"The layers in {path} hold different numbers of tokens, or none.", _AGAIN)
    return ForeignPrefix(
        prefix=PrefixKV(keys, values, keys[0].shape[1]),
        num_frozen_tokens=frozen,
        origin=Origin(kind="reference", digest=sha256_file(path)),
    )


def _load(path: Path) -> Any:
    if not path.is_file():
        raise ArtifactError(f"{path} is not a file.", "Give the checkpoint's `.pt` file.")
    try:
        with safe_globals([(_Parameters, _PARAMETER_LIST)]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        # torch's own words recommend to switch the protection off.
        asked = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = f"it asks for {asked[1]}, which no checkpoint needs" if asked else "it is damaged or no checkpoint"
        raise ArtifactError(f"{path} was not loaded: {reason}.", f"Do not trust it. {_AGAIN}") from error


def _side(content: dict[str, Any], word: str, side: str, path: Path) -> tuple[list[Tensor], int]:
    """A side's tensors `[num_kv_heads, tokens, head_dim]`, frozen tokens first, and the number of those."""
    trainable = _tensors(content[f"trainable_{side}"], f"trainable_{side}", path)
    frozen = _tensors(content[f"{word}_{side}"], f"{word}_{side}", path)
    if not frozen:
        return [tensor[0] for tensor in trainable], 0
    if len(frozen) != len(trainable):
        raise ArtifactError(f"{path} has {len(frozen)} layers of {word}_{side} for {len(trainable)}.", _AGAIN)
    if len({tensor.shape[2] for tensor in frozen}) != 1:
        raise ArtifactError(f"The layers of {path} have different numbers of frozen tokens.", _AGAIN)
    for first, rest in zip(frozen, trainable, strict=True):
        if (first.shape[1], first.shape[3]) != (rest.shape[1], rest.shape[3]):
            raise ArtifactError(f"{word}_{side} and trainable_{side} in {path} have different heads.", _AGAIN)
    joined = [torch.cat((first[0], rest[0]), dim=1) for first, rest in zip(frozen, trainable, strict=True)]
    return joined, frozen[0].shape[2]


def _tensors(value: Any, name: str, path: Path) -> list[Tensor]:
    if isinstance(value, _Parameters):
        held = vars(value).get("_parameters")
        items = [held.get(str(index)) for index in range(len(held))] if isinstance(held, dict) else [None]
    else:
        items = [] if value is None else list(value) if isinstance(value, list | tuple) else [None]
    plain = [tensor.detach() for tensor in items if _plain(tensor)]
    if len(plain) < len(items):
        raise ArtifactError(f"{name} in {path} is no list of [1, heads, tokens, head_dim] tensors.", _AGAIN)
    return plain


def _plain(tensor: Any) -> TypeGuard[Tensor]:
    """Whether it is an ordinary tensor of the right form that takes no more memory than the file gave it."""
    return (
        isinstance(tensor, Tensor)
        and tensor.layout == torch.strided
        and tensor.device.type == "cpu"
        and tensor.dtype in (torch.bfloat16, torch.float16, torch.float32)
        and tensor.ndim == 4
        and tensor.shape[0] == 1
        and tensor.numel() * tensor.itemsize <= tensor.untyped_storage().nbytes()
    )
