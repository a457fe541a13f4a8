"""A model's language-model head by itself, so that it can be applied to some places at a time."""

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from cartridge_core.models import BaseModel

Head = Callable[[Tensor], Tensor]
"""Hidden states `[m, hidden size]` to logits `[m, vocabulary]`."""

_KNOWN: "WeakKeyDictionary[torch.nn.Module, Head | None]" = WeakKeyDictionary()


def is_parted(base: BaseModel) -> bool:
    """Whether the model's weights are parted over processes, so that a module by itself holds but a share."""
    return any(hasattr(parameter, "device_mesh") for parameter in base.model.get_output_embeddings().parameters())


def head_of(base: BaseModel) -> Head | None:
    """The head with all that the model does to its logits: scaling (Cohere, Granite), soft-capping (Gemma).

    It is held against the model's own logits once for each model, because families differ in what they do there.

    Returns:
        None where the two differ: the family does something that this does not know.
    """
    if base.model not in _KNOWN:
        head = _built(base)
        _KNOWN[base.model] = head if _agrees(base, head) else None
    return _KNOWN[base.model]


def _built(base: BaseModel) -> Head:
    text: Any = base.model.config.get_text_config(decoder=True)
    cap = getattr(text, "final_logit_softcapping", None)
    scale = (getattr(text, "logit_scale", None) or 1.0) / (getattr(text, "logits_scaling", None) or 1.0)
    # The module, not its weight: it may be wrapped, cast or have a bias. No reference to the model is kept.
    project = base.model.get_output_embeddings()

    def head(hidden: Tensor) -> Tensor:
        logits: Tensor = project(hidden)
        if scale != 1:
            logits = logits * scale
        return (logits / cap).tanh() * cap if cap else logits

    return head


@torch.no_grad()
def _agrees(base: BaseModel, head: Head) -> bool:
    ids = torch.arange(4, device=base.device)[None] % base.vocab_size
    arguments: dict[str, Any] = {"input_ids": ids, "use_cache": False}
    seen = head(base.model.base_model(**arguments).last_hidden_state[0])
    right = base.model(**arguments).logits[0]
    return seen.shape == right.shape and torch.allclose(seen.float(), right.float(), rtol=1e-3, atol=1e-3)
