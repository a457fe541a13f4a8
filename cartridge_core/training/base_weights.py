"""The frozen base model, its weights held in the type that training is configured for."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cartridge_core.models import BaseModel, load_base_model

FLOAT8 = torch.float8_e4m3fn


def load_frozen_model(id_or_path: str | Path, device: str = "auto", weights: str = "auto") -> BaseModel:
    """Load a model for training or inference.

    Args:
        id_or_path: "reference" (the shipped model), a local folder, or a hub id.
        device: "auto" takes a GPU when there is one.
        weights: A value of `TrainingConfig.base_dtype`.

    Raises:
        UnsupportedModelError: The model cannot hold a Cartridge.
        CartridgeError: It cannot be found, reached or read.
    """
    if weights == "auto":
        return load_base_model(id_or_path, device=device)
    if weights != "float8":
        return load_base_model(id_or_path, device=device, dtype=getattr(torch, weights))
    base = load_base_model(id_or_path, device=device, dtype=torch.bfloat16)
    hold_in_float8(base.model)
    return base


class Float8Linear(nn.Module):
    """A frozen linear layer whose weight is held in 8 bits and turned back each time it is used.

    `weight` is `[out, in]` in e4m3, `scale` is `[out, 1]`: each output's largest weight meets the type's largest.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach()
        largest = weight.float().abs().amax(dim=1, keepdim=True).clamp(min=1e-12)
        scale = largest / torch.finfo(FLOAT8).max
        self.weight = nn.Parameter((weight.float() / scale).to(FLOAT8), requires_grad=False)
        self.scale = nn.Parameter(scale.to(weight.dtype), requires_grad=False)
        self.bias = linear.bias

    def forward(self, hidden: Tensor) -> Tensor:
        """As the linear layer's, up to the rounding of its weight."""
        return _Product.apply(hidden, self.weight, self.scale, self.bias)


class _Product(torch.autograd.Function):
    """Keeps the 8 bits for the backward pass, where autograd would keep the weight in 16."""

    @staticmethod
    def forward(ctx, hidden, weight, scale, bias):  # type: ignore[no-untyped-def]  # torch's own form
        ctx.save_for_backward(weight, scale)
        return nn.functional.linear(hidden, weight.to(scale.dtype) * scale, bias)

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        weight, scale = ctx.saved_tensors
        return gradient @ (weight.to(scale.dtype) * scale), None, None, None


def hold_in_float8(model: Any) -> None:
    """Replace a model's linear layers; embeddings, norms and the head stay as they are."""
    # The head's weight is often the embedding's too, and its rounding would go straight into every probability.
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear and child is not head:
                setattr(module, name, Float8Linear(child))
