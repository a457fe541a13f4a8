"""PEFT's LoRA layers inside the base model for a while: which layers they change, and how much memory they take."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from cartridge_core.errors import TrainingError
from cartridge_core.models import BaseModel
from cartridge_core.training.adapter_config import ALL_LINEAR

_NAME = "default"
"""PEFT's name for the one adapter of a model."""


@contextmanager
def injected(
    base: BaseModel, rank: int, alpha: float, target_modules: str | tuple[str, ...]
) -> Iterator[dict[str, Tensor]]:
    """Inside, the named layers of the base model add a trainable update, which begins as none.

    PEFT puts its layers around the stock ones and takes them away again, so that attention, packing and loss are those
    of a Cartridge. The matrices are fp32 whatever the model's type: small updates of half precision would round away.

    Args:
        base: The frozen model.
        rank: Of each update.
        alpha: The update is multiplied by `alpha / rank`.
        target_modules: Names of layers, or `all-linear`.

    Yields:
        The matrices by the name that PEFT stores them under, random and zero.

    Raises:
        TrainingError: There is no such layer.
    """
    from peft import LoraModel
    from peft.tuners.lora import LoraLayer

    model = LoraModel(base.model, _peft_config(base, rank, alpha, target_modules), _NAME)
    try:
        matrices: dict[str, Tensor] = {}
        for name, layer in base.model.named_modules():
            if isinstance(layer, LoraLayer):
                for side in ("lora_A", "lora_B"):
                    matrix = getattr(layer, side)[_NAME].weight
                    matrix.data = matrix.data.float()
                    matrices[f"base_model.model.{name}.{side}.weight"] = matrix
        yield matrices
    finally:
        model.unload()


def peft_config(base: BaseModel, rank: int, alpha: float, target_modules: str | tuple[str, ...]) -> dict[str, Any]:
    """`adapter_config.json` of such an adapter: the same content each time."""
    stated = _peft_config(base, rank, alpha, target_modules).to_dict() | {"inference_mode": True}
    # PEFT holds names as sets, whose order differs from process to process.
    plain = {name: sorted(value) if isinstance(value, set) else value for name, value in stated.items()}
    content: dict[str, Any] = json.loads(json.dumps(plain))
    return content


def _peft_config(base: BaseModel, rank: int, alpha: float, target_modules: str | tuple[str, ...]) -> Any:
    from peft import LoraConfig, TaskType

    return LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=0.0,
        bias="none",
        target_modules=sorted({name.rpartition(".")[2] for name in adapted_layers(base, target_modules)}),
        task_type=TaskType.CAUSAL_LM,
        base_model_name_or_path=base.identity.id,
    )


def adapted_layers(base: BaseModel, target_modules: str | tuple[str, ...]) -> dict[str, nn.Linear]:
    """The linear layers that the names mean, by their place in the model; never the head.

    The head is left out because training computes it apart, a chunk at a time, with a gradient for its input alone.

    Raises:
        TrainingError: A name means no linear layer.
    """
    head = base.model.get_output_embeddings()
    linear = {
        name: module
        for name, module in base.model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    }
    known = sorted({name.rpartition(".")[2] for name in linear})
    wanted = known if target_modules == ALL_LINEAR else target_modules
    if not known or set(wanted) - set(known):
        lacking = f"layer named {min(set(wanted) - set(known))!r}" if known else "layer"
        remedy = f"Choose from {', '.join(known)}." if known else "Hold its weights in another type than float8."
        raise TrainingError(f"{base.identity.id} has no linear {lacking} to adapt.", remedy)
    return {name: module for name, module in linear.items() if name.rpartition(".")[2] in wanted}


def adapter_bytes(base: BaseModel, rank: int, target_modules: str | tuple[str, ...] = ALL_LINEAR) -> int:
    """Bytes of an adapter's matrices in the base model's stored type."""
    return _elements(base, target_modules) * rank * base.kv_dtype.itemsize


def equal_memory_rank(base: BaseModel, num_tokens: int, target_modules: str | tuple[str, ...] = ALL_LINEAR) -> int:
    """The rank whose matrices take as many bytes as the keys and values of a Cartridge, to the nearest; at least 1.

    So arXiv 2506.06266 compares the two. Both sides are counted in the base model's stored type.
    """
    per_token = sum(2 * layer.num_kv_heads * layer.head_dim for layer in base.layer_specs if layer.has_kv)
    return max(1, round(per_token * num_tokens / _elements(base, target_modules)))


def _elements(base: BaseModel, target_modules: str | tuple[str, ...]) -> int:
    """Elements of an adapter of rank 1."""
    return sum(layer.in_features + layer.out_features for layer in adapted_layers(base, target_modules).values())
