"""Where stock models call us: an attention registered with transformers, and the layouts it attends in."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from cartridge_core.attention.batch_layout import BatchLayout
from cartridge_core.attention.dense import attend_plainly
from cartridge_core.attention.kernel import Kernel
from cartridge_core.attention.packed_layout import PackedLayout
from cartridge_core.cartridge import PrefixKV
from cartridge_core.errors import UnsupportedModelError
from cartridge_core.manifest import LayerSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "cartridge_shared_prefix"
"""Under this name the attention is registered with transformers."""


class Layout(Protocol):
    """How queries and keys of a forward pass lie, and who sees whom."""

    scale_keys: bool
    """Whether keys are to be scaled, and not the queries: the fewer."""

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, prefix: tuple[Tensor, Tensor], window: int | None, cap: float
    ) -> Tensor:
        """Attention of queries `[B, heads, T, d]` over the prefix and keys `[B, kv heads, S, d]`.

        Args:
            query: Scaled, or to be met by scaled keys.
            key: The model's own.
            value: The model's own.
            prefix: Keys and values `[kv heads, n, d]`.
            window: Tokens that a query sees back, itself included; None for all.
            cap: Scores s become `cap * tanh(s / cap)`; 0 for none.

        Returns:
            `[B, T, heads, d]`.
        """
        ...


class _Active:
    # No dataclass: wrappers of models (FSDP) take those apart and cast what is in them.
    def __init__(self, prefix: PrefixKV, layers: Sequence[LayerSpec], layout: Layout) -> None:
        self.prefix, self.layers, self.layout = prefix, layers, layout

    def pair(self, layer: int, module: torch.nn.Module) -> tuple[Tensor, Tensor]:
        """Prefix keys and values that a layer attends to: its own, or those of the layer whose cache it reads."""
        source = layer
        if not self.layers[layer].has_kv:
            source = int(module.kv_shared_layer_index)  # type: ignore[arg-type]  # such layers know whose cache it is
        key, value = self.prefix.keys[source], self.prefix.values[source]
        if key is None or value is None:
            raise UnsupportedModelError(f"Layer {layer} attends, but the prefix holds no keys for it.")
        return key, value


_ACTIVE: ContextVar[_Active | None] = ContextVar("cartridge_prefix", default=None)


def register(name: str, attention: Callable[..., tuple[Tensor, None]]) -> None:
    """Make an attention known to transformers, with the masks that its `sdpa` gets."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(name, attention)
    AttentionMaskInterface.register(name, sdpa_mask)


def install(model: "PreTrainedModel") -> None:
    """Let a model attend behind a shared prefix, once; without one it computes as under transformers' `sdpa`.

    Raises:
        UnsupportedModelError: The model does not call transformers' attention interface.
    """
    register(NAME, _attention)
    model.set_attn_implementation(NAME)
    if model.config._attn_implementation != NAME:
        raise UnsupportedModelError(
            f"Model type {model.config.model_type!r} does not use transformers' attention interface.",
            "Use a decoder of the Llama, Qwen, Gemma or Mistral kind.",
        )


@contextmanager
def left_uncompiled() -> Iterator[None]:
    """Inside, compiled layers call the attention as it is; `flex` is compiled by itself.

    Followed into it, the compiler would make each layer anew, because this asks which layer it is, and give up after
    the eighth. Left out, all layers share what is compiled for the first.
    """
    register(NAME, torch.compiler.disable(_attention))
    try:
        yield
    finally:
        register(NAME, _attention)


@contextmanager
def behind(
    prefix: PrefixKV, layers: Sequence[LayerSpec], query_index: Tensor, slot_index: Tensor
) -> Iterator[dict[str, Any]]:
    """Forward passes inside attend to `prefix` first and then to their own tokens, a row a text.

    Args:
        prefix: Shared by all rows.
        layers: The model's layer specifications; sliding windows count the prefix's tokens too.
        query_index: `[batch, queries]`, how many of the row's own tokens precede each query.
        slot_index: `[batch, slots]`, the same for each key that the layer's cache returns; -1 for padding.

    Yields:
        Keyword arguments for the model's forward pass: positions, and a mask that keeps it from making its own.
    """
    with _active(prefix, layers, BatchLayout(prefix.num_tokens, query_index, slot_index)) as placed:
        yield placed | {"position_ids": query_index + prefix.next_position}


@contextmanager
def packed_behind(
    prefix: PrefixKV, layers: Sequence[LayerSpec], index: Tensor, segment: Tensor, kernel: Kernel = "dense"
) -> Iterator[dict[str, Any]]:
    """Forward passes inside attend to `prefix` and to their own text, of which a row holds several.

    The model reads the R rows as one: `[1, N]` tokens. Under `dense` those are the tokens that are no padding, in
    order; under `flex`, which takes a single row, all of that row.

    Args:
        prefix: What precedes every text; there is one copy of it.
        layers: The model's layer specifications.
        index: `[R, T]`, how many of its text's own tokens precede each token.
        segment: `[R, T]`, which text of the row each token belongs to; -1 for padding.
        kernel: What computes it.

    Yields:
        Keyword arguments for the model's forward pass, as `behind`.
    """
    layout: Layout
    if kernel == "flex":
        # Its import brings the compiler along, which nobody else needs.
        from cartridge_core.attention.flex_layout import FlexLayout

        layout, position = FlexLayout(prefix.num_tokens, index, segment), index.flatten()
    else:
        layout, position = PackedLayout(prefix.num_tokens, index, segment), index[segment >= 0]
    with _active(prefix, layers, layout) as placed:
        yield placed | {"position_ids": (position + prefix.next_position)[None]}


@contextmanager
def _active(prefix: PrefixKV, layers: Sequence[LayerSpec], layout: Layout) -> Iterator[dict[str, Any]]:
    active = _Active(prefix, layers, layout)
    token = _ACTIVE.set(active)
    try:
        yield {
            # Four dimensions mean "made by the caller": models hand it on unread, and so does the attention below.
            "attention_mask": torch.ones((1, 1, 1, 1), dtype=torch.bool, device=_device(prefix)),
            # Once more as an argument: activation checkpointing computes again when this context is long over.
            "cartridge_prefix": active,
        }
    finally:
        _ACTIVE.reset(token)


def _device(prefix: PrefixKV) -> torch.device:
    return next(key.device for key in prefix.keys if key is not None)


def _attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    cartridge_prefix: _Active | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What models call. `query` is `[B, heads, T, d]`, `key` and `value` `[B, kv heads, S, d]`."""
    active = cartridge_prefix or _ACTIVE.get()
    scale = query.shape[3] ** -0.5 if scaling is None else scaling
    if active is None:
        if softcap:
            # transformers' sdpa would leave the cap out without a word.
            return attend_plainly(query * scale, key, value, attention_mask, softcap), None
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)

    if kwargs.get("s_aux") is not None:
        raise UnsupportedModelError(
            f"{type(module).__name__} has learned attention sinks, which this does not compute."
        )
    layer = int(module.layer_idx)  # type: ignore[arg-type]  # every attention that has a cache knows its layer
    # Under autocast the rotation has made queries and keys fp32 again; the values still have the type to compute in.
    dtype = value.dtype
    prefix_key, prefix_value = active.pair(layer, module)
    with torch.autocast(query.device.type, enabled=False):
        if active.layout.scale_keys:
            key, prefix_key = key * scale, prefix_key * scale
        else:
            query = query * scale
        return active.layout.attend(
            query.to(dtype),
            key.to(dtype),
            value,
            (prefix_key.to(dtype), prefix_value.to(dtype)),
            active.layers[layer].window,
            softcap or 0.0,
        ), None
