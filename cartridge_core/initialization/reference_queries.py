"""Reference queries: what conversations ask of the keys in front of them, layer by layer, in one forward pass.

The stock model calls this through transformers' attention interface. A layer's queries are handed out before its
attention is computed, and what comes back is the attention of the layer: so a layer can be fitted on the queries that
the fitted layers below it lead to (the on-policy variant of arXiv 2602.16284).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cartridge_core.attention.interface import register
from cartridge_core.errors import UnsupportedModelError
from cartridge_core.models import BaseModel

NAME = "cartridge_reference_queries"
"""Under this name the attention is registered with transformers."""


@dataclass(frozen=True, eq=False)
class LayerQueries:
    """Queries of a layer, those of a group of query heads pooled for the key/value head that they share.

    Attributes:
        queries: `[kv heads, n, head_dim]` fp32, after RoPE and times the layer's scale.
        own_mass: `[kv heads, n]`, logarithm of the sum of exponentials of the scores on the conversation's own tokens.
        own_output: `[kv heads, n, head_dim]`, what attention to those tokens alone gives.
        index: `[n]`, how many of the conversation's tokens precede each query.
        row: `[n]`, the conversation of each query.
    """

    queries: Tensor
    own_mass: Tensor
    own_output: Tensor
    index: Tensor
    row: Tensor

    def of_head(self, head: int, chosen: Tensor | None = None) -> "HeadQueries":
        """The queries of one key/value head, all or those at some places."""
        at = slice(None) if chosen is None else chosen
        return HeadQueries(self.queries[head][at], self.own_mass[head][at], self.own_output[head][at], self.index[at])


@dataclass(frozen=True, eq=False)
class HeadQueries:
    """As `LayerQueries`, for one key/value head: `[n, head_dim]`, `[n]`, `[n, head_dim]`, `[n]`."""

    queries: Tensor
    own_mass: Tensor
    own_output: Tensor
    index: Tensor

    def __len__(self) -> int:
        """How many."""
        return len(self.queries)

    def at(self, places: Tensor | slice) -> "HeadQueries":
        """Some of them."""
        return HeadQueries(self.queries[places], self.own_mass[places], self.own_output[places], self.index[places])


FitLayer = Callable[[int, LayerQueries], Tensor]
"""Given a layer and its queries, the attention output of each, `[kv heads, n, head_dim]`."""


@dataclass(frozen=True, eq=False)
class _Active:
    base: BaseModel
    valid: Tensor
    fit: FitLayer


_ACTIVE: ContextVar[_Active] = ContextVar("cartridge_reference_queries")


@torch.no_grad()
def walk_layers(base: BaseModel, texts: Sequence[Sequence[int]], first_position: int, fit: FitLayer) -> None:
    """Read texts behind keys that are not there yet: `fit` says what each layer's attention gives.

    Args:
        base: The model; its attention is put back as it was.
        texts: Token ids of the conversations, blind to each other.
        first_position: Position of each text's first token.
        fit: Called once a layer, in order.
    """
    longest = max(map(len, texts))
    ids = torch.zeros(len(texts), longest, dtype=torch.int64)
    valid = torch.zeros(len(texts), longest, dtype=torch.bool)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = torch.as_tensor(list(text))
        valid[row, : len(text)] = True
    positions = torch.arange(first_position, first_position + longest).expand(len(texts), -1)
    with _walking(_Active(base, valid.to(base.device), fit)):
        base.model(
            input_ids=ids.to(base.device),
            position_ids=positions.to(base.device),
            # Four dimensions mean "made by the caller": models hand it on unread, and so does the attention below.
            attention_mask=torch.ones((1, 1, 1, 1), dtype=torch.bool, device=base.device),
            use_cache=False,
            logits_to_keep=1,
        )


@contextmanager
def _walking(active: _Active) -> Iterator[None]:
    register(NAME, _attention)
    model = active.base.model
    before = model.config._attn_implementation
    token = _ACTIVE.set(active)
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
        _ACTIVE.reset(token)


def _attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """`query` is `[B, heads, T, d]`, `key` and `value` are `[B, kv heads, T, d]`; returns `[B, T, heads, d]`."""
    active = _ACTIVE.get()
    if kwargs.get("softcap"):
        # The closed form matches plain exponentials of scores; fitted on those, the values would be silently wrong.
        raise UnsupportedModelError(
            f"{active.base.identity.id} caps its attention scores, which attention matching does not know.",
            "Choose another initialisation.",
        )
    layer = int(module.layer_idx)  # type: ignore[arg-type]  # every attention that has a cache knows its layer
    batch, heads, length, dim = query.shape
    kv_heads = key.shape[1]
    group = heads // kv_heads
    scaled = (query * (dim**-0.5 if scaling is None else scaling)).float().view(batch, kv_heads, group, length, dim)
    index = torch.arange(length, device=query.device)
    distance = index[:, None] - index[None, :]
    window = active.base.layer_specs[layer].window
    seen = (distance >= 0) & (distance < (length if window is None else window))
    scores = (scaled @ key.float()[:, :, None].transpose(3, 4)).masked_fill(~seen, -torch.inf)
    own_mass = scores.logsumexp(dim=-1)
    own_output = scores.softmax(dim=-1) @ value.float()[:, :, None]

    valid = active.valid
    row, place = valid.nonzero(as_tuple=True)

    def pooled(tensor: Tensor) -> Tensor:
        """`[B, kv heads, group, T, ...]` to `[kv heads, group * tokens, ...]`."""
        return tensor.movedim(0, 2)[:, :, valid].flatten(1, 2)

    found = LayerQueries(pooled(scaled), pooled(own_mass), pooled(own_output), place.repeat(group), row.repeat(group))
    given = active.fit(layer, found).view(kv_heads, group, len(row), dim)
    out = query.new_zeros(kv_heads, group, batch, length, dim)
    out[:, :, valid] = given.to(out.dtype)
    return out.permute(2, 3, 0, 1, 4).reshape(batch, length, heads, dim), None
