"""The packed path equals the stock model on each example alone, its own attention and an ordinary cache."""

import numpy as np
import pytest
import torch
from transformers import (
    Cohere2Config,
    Cohere2ForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
)

from cartridge_core.cartridge import PrefixKV
from cartridge_core.inference.prefix import past_key_values
from cartridge_core.models import BaseModel, from_parts
from cartridge_core.selfstudy.conversation import Targets
from cartridge_core.training.packed_attention import packed_logits
from cartridge_core.training.packed_rows import input_length, pack_rows
from cartridge_core.training.text_windows import next_token_targets
from tests.conftest import SIZES, build_tokenizer

PREFIX = 11


def random_prefix(base: BaseModel) -> PrefixKV:
    generator = torch.Generator().manual_seed(5)
    tensors = [
        torch.randn(spec.num_kv_heads, PREFIX, spec.head_dim, generator=generator).requires_grad_()
        for spec in base.layer_specs * 2
    ]
    return PrefixKV(tensors[: len(base.layer_specs)], tensors[len(base.layer_specs) :], PREFIX)


def examples() -> list[Targets]:
    rng = np.random.default_rng(2)
    return [next_token_targets(rng.integers(4, 300, length).astype(np.int32)) for length in (23, 5, 9, 14, 2, 17)]


def alone(base: BaseModel, prefix: PrefixKV, example: Targets, attention: str) -> torch.Tensor:
    """Logits of one example behind the prefix as a plain cache, through attention that transformers ships."""
    length = input_length(example)
    before = base.model.config._attn_implementation
    base.model.set_attn_implementation(attention)
    place = torch.arange(length)
    slots = torch.arange(PREFIX + length)
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
            input_ids=torch.from_numpy(example.token_ids[None, :length].astype(np.int64)),
            position_ids=place[None] + PREFIX,
            past_key_values=past_key_values(base, prefix),
            attention_mask=masks if mixed else mask,
        ).logits[0]
    finally:
        base.model.set_attn_implementation(before)


def check_equal(base: BaseModel, attention: str) -> None:
    prefix = random_prefix(base)
    tensors = [tensor for tensor in (*prefix.keys, *prefix.values) if tensor is not None]
    weights = torch.randn(base.vocab_size, generator=torch.Generator().manual_seed(1))
    (rows,) = pack_rows(examples(), max_tokens=1000)
    assert len(rows.token_ids) < len(examples())
    logits = packed_logits(base, prefix, rows)
    total = (logits.log_softmax(dim=-1) @ weights).sum()
    gradients = torch.autograd.grad(total, tensors)

    expected = {int(e.token_ids[0]): alone(base, prefix, e, attention) for e in examples()}
    assert len(expected) == len(examples())
    reference = torch.cat([expected[int(rows.token_ids.flatten()[start])] for start in _starts(rows)])
    torch.testing.assert_close(logits, reference, atol=2e-5, rtol=2e-5)
    wanted = torch.autograd.grad((reference.log_softmax(dim=-1) @ weights).sum(), tensors)
    for seen, right in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(seen, right, atol=2e-4, rtol=2e-4)


def _starts(rows: object) -> list[int]:
    index, segment = rows.index.flatten(), rows.segment.flatten()  # type: ignore[attr-defined]
    return [int(i) for i in torch.nonzero((index == 0) & (segment >= 0))[:, 0]]


def test_equals_unpacked(each_base: BaseModel) -> None:
    check_equal(each_base, "eager")


@pytest.mark.parametrize("kind", ["gemma2", "granite", "cohere2"])
def test_scaled_and_capped_logits_are_the_models_own(kind: str) -> None:
    torch.manual_seed(0)
    sizes = SIZES | {"pad_token_id": 0}
    model = {
        "gemma2": lambda: Gemma2ForCausalLM(
            Gemma2Config(
                **sizes, head_dim=16, sliding_window=8, attn_logit_softcapping=None, final_logit_softcapping=2.0
            )
        ),
        "granite": lambda: GraniteForCausalLM(GraniteConfig(**sizes, logits_scaling=4.0, attention_multiplier=0.3)),
        "cohere2": lambda: Cohere2ForCausalLM(Cohere2Config(**sizes, logit_scale=0.25, sliding_window=8)),
    }[kind]()
    check_equal(from_parts(model, build_tokenizer("ours"), kind), "eager")


def test_the_models_attention_is_given_back(tiny_base: object) -> None:
    base: BaseModel = tiny_base("llama")  # type: ignore[operator]
    before = base.model.config._attn_implementation
    (rows,) = pack_rows(examples(), max_tokens=1000)
    empty_layer = PrefixKV([random_prefix(base).keys[0], None], [random_prefix(base).values[0], None], PREFIX)
    with pytest.raises(Exception, match="Layer 1"):
        packed_logits(base, empty_layer, rows)
    assert base.model.config._attn_implementation == before
