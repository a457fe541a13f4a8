"""An arm of an evaluation: what stands in front of the user's question."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cartridge_core.cartridge import PrefixKV
    from cartridge_core.models import BaseModel

NO_CONTEXT = "no_context"
ICL = "icl"
ICL_TRUNCATED = "icl_truncated"
NEXT_TOKEN = "next_token"
SELF_STUDY = "self_study"
LORA = "lora"


@dataclass(frozen=True)
class Arm:
    """What a model is given before the question, and what that costs in memory."""

    name: str
    """One of the constants beside this class, or a name of the caller's for a further Cartridge."""
    prefix: PrefixKV | None
    """Keys and values in front of every question; None for nothing at all, and for a text that does not fit."""
    num_tokens: int
    """Tokens that the prefix holds (would hold, if it does not fit)."""
    kv_bytes: int
    """Bytes of its keys and values in the base model's stored type, whatever type the computation uses."""
    fits: bool = True
    """False when the text is longer than the model's window, so that the arm cannot be asked anything."""
    stored_bytes: int | None = None
    """Bytes on disk of a quantised Cartridge; None for any other arm."""
    cartridge_digest: str | None = None
    """The Cartridge behind the prefix, if there is one."""
    adapter_bytes: int | None = None
    """Bytes of the weights that the arm adds to the model, in its stored type; None where it adds none."""
    applied: Callable[[], AbstractContextManager[None]] = nullcontext
    """Inside of what it returns the base model is as the arm needs it; afterwards as it was."""


def kv_bytes(base: BaseModel, num_tokens: int) -> int:
    """Bytes of keys and values of `num_tokens` tokens in the base model's stored type, every layer held in full."""
    per_token = sum(2 * layer.num_kv_heads * layer.head_dim for layer in base.layer_specs if layer.has_kv)
    return per_token * num_tokens * base.kv_dtype.itemsize


def prefilled(base: BaseModel, name: str, token_ids: list[int]) -> Arm:
    """The arm that reads these tokens; one that does not fit is not computed."""
    # Imported late: names and types of arms are read where there is no torch.
    from cartridge_core.inference.prefix import prefill

    fits = len(token_ids) < base.max_positions
    return Arm(
        name=name,
        prefix=prefill(base, token_ids) if fits and token_ids else None,
        num_tokens=len(token_ids),
        kv_bytes=kv_bytes(base, len(token_ids)),
        fits=fits,
    )
