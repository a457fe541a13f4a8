"""The packed path equals the stock model on each example alone, its own attention and an ordinary cache."""

import functools
from collections.abc import Callable

import pytest
import torch
from transformers import (
    Cohere2Config,
    Cohere2ForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3nForCausalLM,
    Gemma3nTextConfig,
    GraniteConfig,
    GraniteForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
)

from cartridge_core.cartridge import PrefixKV
from cartridge_core.errors import UnsupportedModelError
from cartridge_core.inference.generate import GenerationConfig, generate
from cartridge_core.inference.prefix import prefill
from cartridge_core.inference.score import logits_behind
from cartridge_core.models import BaseModel, from_parts
from cartridge_core.training.distillation import packed_loss
from cartridge_core.training.head import head_of
from cartridge_core.training.loss import cross_entropy
from cartridge_core.training.packed_attention import packed_hidden, packed_logits
from cartridge_core.training.packed_rows import pack_rows
from tests.conftest import SIZES, build_tokenizer
from tests.unpacked import PREFIX, check_equal, examples, random_prefix

MIXED = ["sliding_attention", "full_attention"]


def _gemma2() -> PreTrainedModel:
    # Caps so low that scores and logits without them are others.
    caps = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 2.0}
    return Gemma2ForCausalLM(Gemma2Config(**SIZES, head_dim=16, sliding_window=8, layer_types=MIXED, **caps))


def _gemma3n() -> PreTrainedModel:
    # Of six layers the last two read the caches of the third and the fourth.
    small = {"vocab_size_per_layer_input": 512, "hidden_size_per_layer_input": 8, "laurel_rank": 8}
    sizes = SIZES | {"num_hidden_layers": 6}
    config = Gemma3nTextConfig(
        **sizes, **small, head_dim=16, sliding_window=8, layer_types=MIXED * 3, num_kv_shared_layers=2
    )
    return Gemma3nForCausalLM(config)


FAMILIES: dict[str, Callable[[], PreTrainedModel]] = {
    "gemma2": _gemma2,
    "gemma3n": _gemma3n,
    "phi3": lambda: Phi3ForCausalLM(Phi3Config(**SIZES, pad_token_id=0, sliding_window=8)),
    "granite": lambda: GraniteForCausalLM(GraniteConfig(**SIZES, logits_scaling=4.0, attention_multiplier=0.3)),
    "cohere2": lambda: Cohere2ForCausalLM(
        Cohere2Config(**SIZES, logit_scale=0.25, sliding_window=8, layer_types=MIXED, pad_token_id=0)
    ),
}


@functools.cache
def build(kind: str) -> BaseModel:
    torch.manual_seed(sum(map(ord, kind)))
    model = FAMILIES[kind]()
    for config in (model.config, model.generation_config):
        config.bos_token_id, config.eos_token_id, config.pad_token_id = None, 1, None
    return from_parts(model, build_tokenizer("ours"), kind)


@pytest.fixture(params=tuple(FAMILIES))
def other_base(request: pytest.FixtureRequest) -> BaseModel:
    return build(request.param)


def test_equals_unpacked(each_base: BaseModel) -> None:
    check_equal(each_base)


def test_equals_unpacked_in_other_families(other_base: BaseModel) -> None:
    check_equal(other_base)


def test_generation_and_scoring_in_other_families(other_base: BaseModel) -> None:
    """A text whose head was read into a prefix goes on as the whole text does."""
    base = other_base
    ids = torch.randint(10, 400, (40,), generator=torch.Generator().manual_seed(0)).tolist()
    with torch.no_grad():
        base.model.set_attn_implementation("eager")
        wanted = base.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
        base.model.set_attn_implementation("cartridge_shared_prefix")
    prefix = prefill(base, ids[:25])
    assert [key is not None for key in prefix.keys] == [spec.has_kv for spec in base.layer_specs]
    torch.testing.assert_close(logits_behind(base, prefix, [ids[25:]])[0], wanted[25:], atol=1e-4, rtol=1e-4)
    config = GenerationConfig(max_new_tokens=5)
    prompts = [ids[25:], ids[25:30], ids[25:33]]
    together = generate(base, prefix, prompts, config)
    assert [g.token_ids for g in together] == [generate(base, prefix, [p], config)[0].token_ids for p in prompts]
    assert together[0].token_ids[0] == int(wanted[-1].argmax())


def test_a_cap_on_scores_matters_without_a_prefix_too() -> None:
    base = build("gemma2")
    ids = torch.arange(20, 50)[None]
    with torch.no_grad():
        capped = base.model(input_ids=ids).logits
        base.model.set_attn_implementation("sdpa")  # which leaves the cap out
        uncapped = base.model(input_ids=ids).logits
        base.model.set_attn_implementation("eager")
        right = base.model(input_ids=ids).logits
        base.model.set_attn_implementation("cartridge_shared_prefix")
    torch.testing.assert_close(capped, right, atol=1e-5, rtol=1e-5)
    assert (uncapped - right).abs().max() > 1e-2


def check_head(base: BaseModel) -> None:
    prefix = random_prefix(base)
    (rows,) = pack_rows(examples(), 1000)
    with torch.no_grad():
        head = head_of(base)
        assert head is not None
        torch.testing.assert_close(head(packed_hidden(base, prefix, rows)), packed_logits(base, prefix, rows))
    tensors = [tensor for tensor in (*prefix.keys, *prefix.values) if tensor is not None]
    whole = cross_entropy(packed_logits(base, prefix, rows), rows.teacher).sum()
    chunked = packed_loss(base, prefix, rows, chunk_tokens=7)
    torch.testing.assert_close(chunked.loss, whole)
    assert chunked.tokens == len(rows.teacher)
    for ours, plain in zip(
        torch.autograd.grad(chunked.loss, tensors), torch.autograd.grad(whole, tensors), strict=True
    ):
        torch.testing.assert_close(ours, plain, atol=1e-4, rtol=1e-4)


def test_the_heads_chunks_are_the_models_own_logits(each_base: BaseModel) -> None:
    check_head(each_base)


def test_scaled_and_capped_logits_are_the_models_own(other_base: BaseModel) -> None:
    check_head(other_base)


def test_an_unknown_head_is_seen_and_the_models_own_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    base = from_parts(FAMILIES["granite"](), build_tokenizer("ours"), "odd")
    prefix = random_prefix(base)
    (rows,) = pack_rows(examples(), 1000)
    right = cross_entropy(packed_logits(base, prefix, rows), rows.teacher).sum()
    # A head that does something else to its logits, in a way that no configuration tells.
    monkeypatch.setattr("cartridge_core.training.head._built", lambda base: base.model.get_output_embeddings())
    with pytest.warns(RuntimeWarning, match="head of odd"):
        torch.testing.assert_close(packed_loss(base, prefix, rows).loss, right)


def test_padding_does_not_pass_through_the_model() -> None:
    base = build("phi3")
    (rows,) = pack_rows(examples(), 1000)
    read: list[int] = []
    hook = base.model.get_input_embeddings().register_forward_hook(lambda m, args, out: read.append(out.shape[1]))
    packed_logits(base, random_prefix(base), rows)
    hook.remove()
    assert read == [int((rows.segment >= 0).sum())]
    assert read[0] < rows.token_ids.numel()


def test_a_layer_without_a_prefix_is_named(tiny_base: Callable[[str], BaseModel]) -> None:
    base = tiny_base("llama")
    (rows,) = pack_rows(examples(), max_tokens=1000)
    ids = torch.arange(10, 20)[None]
    before = base.model(input_ids=ids).logits
    empty_layer = PrefixKV([random_prefix(base).keys[0], None], [random_prefix(base).values[0], None], PREFIX)
    with pytest.raises(UnsupportedModelError, match="Layer 1"):
        packed_logits(base, empty_layer, rows)
    # Outside, the model is as before.
    assert torch.equal(base.model(input_ids=ids).logits, before)


def test_activation_checkpointing_computes_again_behind_the_prefix(tiny_base: Callable[[str], BaseModel]) -> None:
    base = tiny_base("llama")
    prefix = random_prefix(base)
    (rows,) = pack_rows(examples(), max_tokens=1000)
    plain = torch.autograd.grad(packed_logits(base, prefix, rows).sum(), prefix.keys[0])[0]
    base.model.gradient_checkpointing_enable({"use_reentrant": False})
    base.model.train()
    try:
        again = torch.autograd.grad(packed_logits(base, prefix, rows).sum(), prefix.keys[0])[0]
    finally:
        base.model.eval()
        base.model.gradient_checkpointing_disable()
    torch.testing.assert_close(again, plain)


def test_half_precision_is_close(each_base: BaseModel) -> None:
    """Under autocast, widths of the scores that do not fill a vector register included."""
    base, prefix = each_base, random_prefix(each_base)
    (rows,) = pack_rows(examples(), max_tokens=1000)
    tensors = [tensor for tensor in (*prefix.keys, *prefix.values) if tensor is not None]
    exact = packed_loss(base, prefix, rows).loss
    with torch.autocast("cpu", torch.bfloat16):
        rough = packed_loss(base, prefix, rows).loss
    assert rough.item() == pytest.approx(exact.item(), rel=0.02)
    one, other = (torch.cat([g.flatten() for g in torch.autograd.grad(loss, tensors)]) for loss in (exact, rough))
    assert torch.nn.functional.cosine_similarity(one, other, dim=0) > 0.99
