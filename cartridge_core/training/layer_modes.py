"""Other ways to pass the frozen model's layers: activations computed again, or layers compiled."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import copy_context
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from cartridge_core.attention import left_uncompiled
from cartridge_core.errors import UnsupportedModelError
from cartridge_core.models import BaseModel
from cartridge_core.training.sharding import decoder_layers


@contextmanager
def recomputed_activations(base: BaseModel, wanted: bool) -> Iterator[None]:
    """Inside, layers keep their input only and compute the rest again in the backward pass (arXiv 1604.06174).

    transformers' own switch works in training mode alone, which would switch dropout on too. Here the layers' modules
    are put into it and their parts are not.

    Args:
        base: The model.
        wanted: Whether to do it at all.

    Raises:
        UnsupportedModelError: The model's layers cannot be passed again.
    """
    if not wanted:
        yield
        return
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = decoder_layers(base.model)
    if not all(isinstance(layer, GradientCheckpointingLayer) for layer in layers):
        raise UnsupportedModelError(
            f"The layers of {base.identity.id} cannot be computed again in the backward pass.",
            "Switch activation_checkpointing off.",
        )
    try:
        for layer in layers:
            _set(layer, True, partial(_checkpointed, base.model.config))
        yield
    finally:
        for layer in layers:
            _set(layer, False, None)


def _set(layer: nn.Module, on: bool, function: Any) -> None:
    layer.training = on
    layer.gradient_checkpointing = on  # type: ignore[assignment]
    layer._gradient_checkpointing_func = function


def _checkpointed(config: Any, function: Any, *inputs: Any) -> Any:
    """Pass a layer now and again later, with the attention and the prefix of now.

    The packed rows and the prefix reach the attention through context variables, which are no longer set when the
    backward pass gets here. The prefix's tensors are inputs by way of the closure: gradients flow to them all the same.
    """
    context, attention = copy_context(), config._attn_implementation

    def run(*inputs: Any) -> Any:
        before = config._attn_implementation
        config._attn_implementation_internal = attention
        try:
            return context.run(function, *inputs)
        finally:
            config._attn_implementation_internal = before

    return checkpoint(run, *inputs, use_reentrant=False)


@contextmanager
def compiled_layers(base: BaseModel, wanted: bool) -> Iterator[None]:
    """Inside, layers are compiled at the first pass, all but their attention (`torch.compile`; lengths may change).

    Args:
        base: The model.
        wanted: Whether to do it at all.
    """
    if not wanted:
        yield
        return
    layers = decoder_layers(base.model)
    for layer in layers:
        layer.compile(dynamic=True)
    try:
        with left_uncompiled():
            yield
    finally:
        for layer in layers:
            layer._compiled_call_impl = None


@contextmanager
def eager_layers(base: BaseModel) -> Iterator[None]:
    """Inside, compiled layers are passed as they were written: in generation every token has other shapes.

    Args:
        base: The model.
    """
    layers = decoder_layers(base.model)
    compiled = [layer._compiled_call_impl for layer in layers]
    for layer in layers:
        layer._compiled_call_impl = None
    try:
        yield
    finally:
        for layer, call in zip(layers, compiled, strict=True):
            layer._compiled_call_impl = call
