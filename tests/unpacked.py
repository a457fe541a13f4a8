"""The plain way: one example at a time, transformers' own attention, an ordinary cache. What packed rows must equal."""

import numpy as np
import torch

from cartridge_core.attention import Kernel
from cartridge_core.cartridge import PrefixKV
from cartridge_core.inference.prefix import past_key_values
from cartridge_core.models import BaseModel
from cartridge_core.selfstudy.conversation import Targets
from cartridge_core.training.packed_attention import packed_logits
from cartridge_core.training.packed_rows import PackedRows, input_length, pack_rows
from cartridge_core.training.text_windows import next_token_targets

PREFIX = 11


def random_prefix(base: BaseModel) -> PrefixKV:
    """Keys and values drawn from a seed."""
    generator = torch.Generator().manual_seed(5)
    tensors = [
        torch.randn(spec.num_kv_heads, PREFIX, spec.head_dim, generator=generator).to(base.device).requires_grad_()
        if spec.has_kv
        else None
        for spec in base.layer_specs * 2
    ]
    return PrefixKV(tensors[: len(base.layer_specs)], tensors[len(base.layer_specs) :], PREFIX)


def examples() -> list[Targets]:
    """Texts of several lengths, whose every token is predicted."""
    rng = np.random.default_rng(2)
    return [next_token_targets(rng.integers(4, 300, length).astype(np.int32)) for length in (23, 5, 9, 14, 2, 17)]


def alone(base: BaseModel, prefix: PrefixKV, example: Targets, attention: str = "eager") -> torch.Tensor:
    """Logits of one example behind the prefix as a plain cache, through attention that transformers ships."""
    length = input_length(example)
    before = base.model.config._attn_implementation
    base.model.set_attn_implementation(attention)
    place = torch.arange(length, device=base.device)
    slots = torch.arange(PREFIX + length, device=base.device)
    masks = {}
    windows = {"full_attention": None, "sliding_attention": getattr(base.model.config, "sliding_window", None)}
    for kind, window in windows.items():
        distance = (place + PREFIX)[:, None] - slots[None]
        seen = (distance >= 0) & (distance < (window or 10_000))
        masks[kind] = torch.where(seen, 0.0, torch.finfo(torch.float32).min)[None, None]
    mixed = len({spec.window for spec in base.layer_specs}) > 1
    mask = masks["sliding_attention" if base.layer_specs[0].window else "full_attention"]
    try:
        return base.model(
            input_ids=torch.from_numpy(example.token_ids[None, :length].astype(np.int64)).to(base.device),
            position_ids=place[None] + PREFIX,
            past_key_values=past_key_values(base, prefix),
            attention_mask=masks if mixed else mask,
        ).logits[0]
    finally:
        base.model.set_attn_implementation(before)


def check_equal(base: BaseModel, *, kernel: Kernel = "dense", gradients: bool = True, atol: float = 2e-5) -> None:
    """Logits, and gradients to the prefix, of packed rows and of the plain way."""
    prefix = random_prefix(base)
    tensors = [tensor for tensor in (*prefix.keys, *prefix.values) if tensor is not None]
    weights = torch.randn(base.vocab_size, generator=torch.Generator().manual_seed(1)).to(base.device)
    (rows,) = pack_rows(examples(), 80, base.device, kernel=kernel)
    assert len(rows.token_ids) < len(examples())
    with torch.set_grad_enabled(gradients):
        logits = packed_logits(base, prefix, rows)
        alone_by_first = {int(e.token_ids[0]): alone(base, prefix, e) for e in examples()}
    assert len(alone_by_first) == len(examples())
    reference = torch.cat([alone_by_first[first] for first in first_tokens(rows)])
    torch.testing.assert_close(logits, reference, atol=atol, rtol=atol)
    if gradients:
        seen, wanted = (
            torch.autograd.grad((some.log_softmax(dim=-1) @ weights).sum(), tensors) for some in (logits, reference)
        )
        for ours, plain in zip(seen, wanted, strict=True):
            assert plain.abs().max() > 0
            torch.testing.assert_close(ours, plain, atol=10 * atol, rtol=10 * atol)


def first_tokens(rows: PackedRows) -> list[int]:
    """First token of each example, in the order in which they lie."""
    starts = (rows.index == 0) & (rows.segment >= 0)
    return rows.token_ids[starts].tolist()
