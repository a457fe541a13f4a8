"""A trained Cartridge as an arm: of self-study, of the next-token objective, or any other recipe to compare."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cartridge_core.baselines.arm import SELF_STUDY, Arm

if TYPE_CHECKING:
    from cartridge_core.cartridge import Cartridge
    from cartridge_core.models import BaseModel


def trained_arm(base: BaseModel, cartridge: Cartridge, name: str = SELF_STUDY) -> Arm:
    """The Cartridge's keys and values in front of the question.

    Raises:
        BaseModelMismatchError: The Cartridge belongs to another base model.
    """
    cartridge.check_base_model(base.identity)
    return Arm(
        name=name,
        prefix=cartridge.prefix(),
        num_tokens=cartridge.num_tokens,
        kv_bytes=cartridge.kv_bytes,
        stored_bytes=cartridge.stored_bytes if cartridge.manifest.quantization else None,
        cartridge_digest=cartridge.digest,
    )
