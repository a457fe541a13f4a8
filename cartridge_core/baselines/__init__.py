"""Baselines: what a Cartridge is compared with, one file each. Importing them needs no torch; building an arm does."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from cartridge_core.baselines.arm import ICL, ICL_TRUNCATED, LORA, NEXT_TOKEN, NO_CONTEXT, SELF_STUDY, Arm
from cartridge_core.baselines.icl import icl_arm
from cartridge_core.baselines.icl_truncated import icl_truncated_arm
from cartridge_core.baselines.lora import lora_arm
from cartridge_core.baselines.no_context import no_context_arm
from cartridge_core.baselines.trained import trained_arm

if TYPE_CHECKING:
    from cartridge_core.corpus import Corpus
    from cartridge_core.models import BaseModel

BASELINES: dict[str, Callable[[BaseModel, Corpus, int], Arm]] = {
    NO_CONTEXT: no_context_arm,
    ICL: icl_arm,
    ICL_TRUNCATED: icl_truncated_arm,
}
"""Name to function of (base model, corpus, tokens of memory that the Cartridge takes): the arms without training."""

__all__ = [
    "BASELINES",
    "ICL",
    "ICL_TRUNCATED",
    "LORA",
    "NEXT_TOKEN",
    "NO_CONTEXT",
    "SELF_STUDY",
    "Arm",
    "lora_arm",
    "trained_arm",
]
