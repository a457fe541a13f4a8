"""An optimizer's state as named tensors and JSON, for a checkpoint: nothing is ever a pickle."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from cartridge_core.errors import TrainingError

_NAME = "optimizer.{index}.{name}"


def optimizer_state(optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Take an optimizer's state apart: AdamW's moments and step counts, Muon's momentum, and the groups' settings.

    Returns:
        Tensors by name, and what is not a tensor as JSON values.

    Raises:
        TrainingError: The state holds something that is neither.
    """
    stated = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    values: dict[str, dict[str, Any]] = {}
    for index, entries in stated["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[_NAME.format(index=index, name=name)] = value
            else:
                values.setdefault(str(index), {})[name] = _plain(name, value)
    groups = [
        {name: _plain(name, value) for name, value in group.items() if name != "params"}
        for group in stated["param_groups"]
    ]
    return tensors, {"state": values, "groups": groups}


def restore_optimizer(optimizer: Optimizer, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
    """Give an optimizer, made anew for the same parameters, the state that `optimizer_state` took apart."""
    fresh = optimizer.state_dict()
    state: dict[int, dict[str, Any]] = {int(index): dict(entries) for index, entries in values["state"].items()}
    for full, tensor in tensors.items():
        prefix, _, rest = full.partition(".")
        if prefix == "optimizer":
            index, _, name = rest.partition(".")
            state.setdefault(int(index), {})[name] = tensor
    groups = [
        group | {name: _as_before(group.get(name), value) for name, value in saved.items()}
        for group, saved in zip(fresh["param_groups"], values["groups"], strict=True)
    ]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _plain(name: str, value: Any) -> Any:
    if isinstance(value, Tensor) and value.ndim == 0:
        return value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_plain(name, item) for item in value]
    raise TrainingError(
        f"The optimizer keeps {name} as {type(value).__name__}, which a checkpoint cannot hold.",
        "Keep numbers, strings and tensors only.",
    )


def _as_before(fresh: Any, saved: Any) -> Any:
    """JSON has no tuples, and no tensors of one number."""
    if isinstance(fresh, tuple):
        return tuple(saved)
    return torch.full_like(fresh, saved) if isinstance(fresh, Tensor) else saved
