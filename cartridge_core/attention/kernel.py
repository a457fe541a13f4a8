"""Which code computes the attention of packed rows."""

import importlib.util
import warnings
from typing import Literal

import torch

from cartridge_core.errors import TrainingError

Kernel = Literal["dense", "flex"]
"""`dense`: matrix products over prefix and padded rows. `flex`: FlexAttention, which skips what is masked."""


def choose_kernel(wanted: Literal["auto", "flex", "dense"], device: torch.device | str) -> Kernel:
    """The kernel to train with.

    Args:
        wanted: `auto` takes FlexAttention on CUDA, where it is compiled, and dense products elsewhere.
        device: Where the model is.

    Raises:
        TrainingError: FlexAttention is asked for where it has no gradient.
    """
    kind = torch.device(device).type
    if wanted == "dense":
        return "dense"
    if kind != "cuda":
        if wanted == "flex":
            raise TrainingError(
                f"FlexAttention has no gradient on a {kind} device.", "Choose the attention 'auto' or 'dense' there."
            )
        return "dense"
    # Compilation for CUDA goes through Triton.
    if importlib.util.find_spec("triton") is not None:
        return "flex"
    problem = "FlexAttention cannot be compiled: Triton is not installed."
    if wanted == "flex":
        raise TrainingError(problem, "Install triton, or choose the attention 'dense'.")
    warnings.warn(
        f"{problem} Training goes on with dense attention, which is several times slower and takes more memory.",
        RuntimeWarning,
        stacklevel=2,
    )
    return "dense"
