"""The control that the whole product rests on: an untrained Cartridge of a text is that text in the prompt."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cartridge_core.attention import behind
from cartridge_core.cartridge import Cartridge, PrefixKV
from cartridge_core.errors import InferenceError
from cartridge_core.inference.prefix import empty_prefix, past_key_values, prefill
from cartridge_core.inference.score import logits_behind
from cartridge_core.models import BaseModel
from cartridge_core.rendering import prefix_token_ids, render_turns
from tests.samples import cartridge_of

Tiny = Callable[[str], BaseModel]
TEXT = "The ward of Ada Lind is green. Her room is seven and her nurse is Tom Berg.\n" * 3
QUESTION = [{"role": "user", "content": "What is the room of Ada Lind?"}]


def in_prompt(base: BaseModel, token_ids: list[int]) -> torch.Tensor:
    """Logits of a text by transformers alone: no prefix, no cache."""
    base.model.set_attn_implementation("eager")
    try:
        return base.model(input_ids=torch.tensor([token_ids]), use_cache=False).logits[0]
    finally:
        base.model.set_attn_implementation("cartridge_shared_prefix")


def test_the_untrained_cartridge_of_a_corpus_equals_the_corpus_in_the_prompt(
    each_base: BaseModel, tmp_path: Path
) -> None:
    base = each_base
    corpus = prefix_token_ids(base.tokenizer, TEXT)
    question = render_turns(base.tokenizer, QUESTION, add_generation_prompt=True).token_ids
    assert len(corpus) > 50
    cartridge = cartridge_of(base, corpus, dtype=torch.float32)
    loaded = Cartridge.load(cartridge.save(tmp_path / "c"))
    loaded.check_base_model(base.identity)

    wanted = in_prompt(base, corpus + question)[len(corpus) :]
    seen = logits_behind(base, loaded.prefix(), [question])[0]
    assert (seen - wanted).abs().max() <= 1e-4
    # And the corpus matters: without it the logits are others.
    without = logits_behind(base, None, [question])[0]
    assert (without - wanted).abs().max() > 1e-2


def test_positions_matter(each_base: BaseModel) -> None:
    # What catches a user who starts at 0 instead of behind the Cartridge.
    ids = random.Random(0).choices(range(10, 400), k=60)
    prefix = prefill(each_base, ids[:40])
    wanted = in_prompt(each_base, ids)[40:]
    moved = logits_behind(each_base, PrefixKV(prefix.keys, prefix.values, 0), [ids[40:]])[0]
    assert (moved - wanted).abs().max() > 1e-2


def test_a_sliding_window_hides_the_far_prefix(tiny_base: Tiny) -> None:
    # All layers of the tiny Mistral see 8 tokens back; two layers carry a trace 14 back, and not a token further.
    base, draw = tiny_base("mistral"), random.Random(1)
    ids = draw.choices(range(10, 400), k=60)
    near, far = ids[:40], [*draw.choices(range(10, 400), k=20), *ids[20:40]]
    first, second = (logits_behind(base, prefill(base, head), [ids[40:]])[0] for head in (near, far))
    assert torch.allclose(first, second, atol=1e-5)
    close = [*ids[:39], (ids[39] + 1) % 400]
    assert not torch.allclose(first, logits_behind(base, prefill(base, close), [ids[40:]])[0], atol=1e-3)


@pytest.mark.parametrize("chunk", [1, 7, 40])
def test_a_prefill_in_pieces_is_the_same(each_base: BaseModel, chunk: int) -> None:
    ids = random.Random(2).choices(range(10, 400), k=40)
    whole, pieces = prefill(each_base, ids), prefill(each_base, ids, chunk=chunk)
    assert whole.num_tokens == whole.next_position == 40
    for ours, theirs in zip([*whole.keys, *whole.values], [*pieces.keys, *pieces.values], strict=True):
        assert ours is not None and theirs is not None
        assert ours.shape == (2, 40, each_base.layer_specs[0].head_dim)
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_texts_of_different_lengths_do_not_disturb_each_other(each_base: BaseModel) -> None:
    draw = random.Random(3)
    prefix = prefill(each_base, draw.choices(range(10, 400), k=30))
    texts = [draw.choices(range(10, 400), k=length) for length in (1, 25, 7)]
    for text, together in zip(texts, logits_behind(each_base, prefix, texts), strict=True):
        assert torch.allclose(together, logits_behind(each_base, prefix, [text])[0], atol=1e-5)


def test_the_ordinary_cache_gives_the_same_logits_and_gradients(each_base: BaseModel) -> None:
    base, draw = each_base, random.Random(4)
    prefix = prefill(base, draw.choices(range(10, 400), k=30))
    ids = torch.tensor([draw.choices(range(10, 400), k=12) for _ in range(3)])
    index = torch.arange(12).expand(3, -1)

    def leaves() -> PrefixKV:
        keys, values = (
            [t.clone().requires_grad_() for t in side if t is not None] for side in (prefix.keys, prefix.values)
        )
        return PrefixKV(keys, values, prefix.next_position)

    shared, copied = leaves(), leaves()
    with behind(shared, base.layer_specs, index, index) as placed:
        first = base.model(input_ids=ids, use_cache=False, **placed).logits
    second = base.model(
        input_ids=ids, position_ids=index + 30, past_key_values=past_key_values(base, copied, batch=3)
    ).logits
    assert torch.allclose(first, second, atol=1e-4)
    for logits in (first, second):
        logits.log_softmax(-1)[..., 7].mean().backward()
    for ours, theirs in zip([*shared.keys, *shared.values], [*copied.keys, *copied.values], strict=True):
        assert ours is not None and theirs is not None and ours.grad is not None and theirs.grad is not None
        assert ours.grad.abs().max() > 0
        assert torch.allclose(ours.grad, theirs.grad, atol=1e-6)


def test_padded_rows_of_the_ordinary_cache(tiny_base: Tiny) -> None:
    # [pad][prefix][prompt]: padding is masked, and the place in the row is index minus pads.
    base, draw = tiny_base("gemma3"), random.Random(5)
    prefix = prefill(base, draw.choices(range(10, 400), k=20))
    text = draw.choices(range(10, 400), k=6)
    cache = past_key_values(base, prefix, batch=2, pads=3)
    mask = torch.tensor([[False] * 3 + [True] * 26] * 2)
    positions = torch.arange(20, 26).expand(2, -1)
    logits = base.model(
        input_ids=torch.tensor([text] * 2), attention_mask=mask, position_ids=positions, past_key_values=cache
    ).logits
    assert torch.allclose(logits[1], logits_behind(base, prefix, [text])[0], atol=1e-4)


def test_a_prefix_of_nothing(each_base: BaseModel) -> None:
    ids = random.Random(6).choices(range(10, 400), k=20)
    for nothing in (None, empty_prefix(each_base)):
        assert torch.allclose(logits_behind(each_base, nothing, [ids])[0], in_prompt(each_base, ids), atol=1e-4)


def test_the_model_is_as_before_outside(tiny_base: Tiny) -> None:
    base = tiny_base("qwen3")
    prefix, index = prefill(base, range(10, 20)), torch.arange(5)[None]
    ids = torch.arange(30, 35)[None]
    before = base.model(input_ids=ids).logits
    with pytest.raises(RuntimeError), behind(prefix, base.layer_specs, index, index):
        raise RuntimeError
    assert torch.equal(base.model(input_ids=ids).logits, before)


def test_a_prefill_can_be_trained_from(tiny_base: Tiny) -> None:
    key = prefill(tiny_base("qwen2"), range(10, 20)).keys[0]
    assert key is not None
    (key.clone().requires_grad_() * 2).sum().backward()


def test_what_does_not_fit_is_refused(tiny_base: Tiny) -> None:
    base = tiny_base("qwen2")
    with pytest.raises(InferenceError, match="no tokens to read"):
        prefill(base, [])
    with pytest.raises(InferenceError, match="1025 tokens do not fit tiny-qwen2, which has 1024 positions"):
        prefill(base, [10] * 1025)
    with pytest.raises(InferenceError, match="Text 1 has 1020 tokens; tiny-qwen2 has room for 1 to 1014"):
        logits_behind(base, prefill(base, range(10, 20)), [[5], [5] * 1020])


@pytest.mark.parametrize("block", [1, 200, 3000])
def test_scores_in_blocks_are_the_same(each_base: BaseModel, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    draw = random.Random(7)
    prefix = prefill(each_base, draw.choices(range(10, 400), k=30))
    texts = [draw.choices(range(10, 400), k=length) for length in (9, 14, 3)]
    whole = logits_behind(each_base, prefix, texts)
    monkeypatch.setattr("cartridge_core.attention.batch_layout._BLOCK", {True: block, False: block})
    for ours, theirs in zip(logits_behind(each_base, prefix, texts), whole, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)
