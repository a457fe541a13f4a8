"""The type that training multiplies matrices in."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

import torch

from cartridge_core.models import BaseModel
from cartridge_core.training.config import TrainingConfig


def multiplies_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 natively; where it does not, emulation makes it slower than fp32."""
    # Releases before this question could be asked are taken for processors that do not.
    capabilities: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(have for name, have in capabilities.items() if name.endswith("bf16"))


def training_precision(base: BaseModel, config: TrainingConfig) -> AbstractContextManager[object]:
    """A context in which the model's forward pass multiplies in the configured type.

    Sums, norms and softmax stay fp32. A model that is kept in half precision already computes in it.
    """
    on_request = config.precision == "bfloat16"
    by_itself = config.precision == "auto" and base.device.type == "cpu" and multiplies_bfloat16()
    if base.dtype == torch.float32 and (on_request or by_itself):
        return torch.autocast(base.device.type, torch.bfloat16)
    return nullcontext()
