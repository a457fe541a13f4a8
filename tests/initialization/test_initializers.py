"""Where a Cartridge starts: what holds for every initialiser, and for the simple ones."""

from collections.abc import Callable

import pytest
import torch

from cartridge_core.corpus import Corpus
from cartridge_core.errors import TrainingError
from cartridge_core.inference.prefix import prefill
from cartridge_core.initialization.initializers import INITIALIZERS
from cartridge_core.initialization.options import OPTIONS
from cartridge_core.initialization.sampled_chunks import head_length, sample_windows
from cartridge_core.initialization.source import InitializationSource
from cartridge_core.models import BaseModel
from cartridge_core.prefix_kv import PrefixKV
from cartridge_core.rendering import prefix_token_ids
from tests.initialization.conftest import OTHER, Sourced

Tiny = Callable[[str], BaseModel]
NAMES = [name for name in INITIALIZERS if name != "cartridge"]  # which has a test file of its own


def tensors(prefix: PrefixKV) -> list[torch.Tensor]:
    return [tensor for tensor in (*prefix.keys, *prefix.values) if tensor is not None]


def test_every_initialiser_has_options_and_the_other_way_round() -> None:
    assert INITIALIZERS.keys() == OPTIONS.keys()


@pytest.mark.parametrize("name", NAMES)
def test_every_initialiser_fits_the_model(each_base: BaseModel, sourced: Sourced, name: str) -> None:
    source = sourced(each_base, name)
    prefix, again = INITIALIZERS[name](source), INITIALIZERS[name](source)
    assert prefix.num_tokens == prefix.next_position == 80
    for spec, key, value in zip(each_base.layer_specs, prefix.keys, prefix.values, strict=True):
        assert key is not None and value is not None
        assert key.shape == value.shape == (spec.num_kv_heads, 80, spec.head_dim)
        assert key.isfinite().all() and value.isfinite().all()
        assert not key.is_inference() and not key.requires_grad
    assert all(torch.equal(one, other) for one, other in zip(tensors(prefix), tensors(again), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_the_first_token_is_the_real_one(each_base: BaseModel, sourced: Sourced, corpus: Corpus, name: str) -> None:
    real = prefill(each_base, prefix_token_ids(each_base.tokenizer, corpus.text())[:1])
    for ours, theirs in zip(tensors(INITIALIZERS[name](sourced(each_base, name))), tensors(real), strict=True):
        torch.testing.assert_close(ours[:, :1], theirs, atol=1e-5, rtol=1e-5)


def test_first_tokens_are_the_head_of_the_wrapped_corpus(
    each_base: BaseModel, sourced: Sourced, corpus: Corpus
) -> None:
    whole = prefill(each_base, prefix_token_ids(each_base.tokenizer, corpus.text()))
    made = INITIALIZERS["first_tokens"](sourced(each_base))
    for ours, theirs in zip(tensors(made), tensors(whole), strict=True):
        assert torch.allclose(ours, theirs[:, :80], atol=1e-5)


def test_a_given_text_stands_where_the_corpus_would(tiny_base: Tiny, sourced: Sourced) -> None:
    base = tiny_base("llama")
    made = INITIALIZERS["text"](sourced(base, "text"))
    theirs = prefill(base, prefix_token_ids(base.tokenizer, OTHER)[:80])
    assert all(torch.equal(a, b) for a, b in zip(tensors(made), tensors(theirs), strict=True))
    with pytest.raises(TrainingError, match=r"Cartridge of 400 tokens cannot start from a text of \d+"):
        INITIALIZERS["text"](sourced(base, "text", 400))


def test_seeds_decide_random_vectors_and_scale_is_real(tiny_base: Tiny, sourced: Sourced) -> None:
    base = tiny_base("qwen2")
    first, same, other = (INITIALIZERS["random_vectors"](sourced(base, seed=seed)).keys[0] for seed in (1, 1, 2))
    real = INITIALIZERS["first_tokens"](sourced(base)).keys[0]
    assert first is not None and same is not None and other is not None and real is not None
    assert torch.equal(first, same) and not torch.equal(first[:, 1:], other[:, 1:])
    assert not torch.allclose(first[:, 1:], real[:, 1:], atol=1e-2)
    assert (first.std(dim=1) / real.std(dim=1)).sub(1).abs().mean() < 0.3


def test_sampled_chunks_are_windows_of_the_corpus_behind_the_head(
    tiny_base: Tiny, sourced: Sourced, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny_base("qwen3")
    ids = prefix_token_ids(base.tokenizer, corpus.text())
    head = head_length(base, ids)
    assert "From: A" not in base.tokenizer.decode(ids[:head])
    assert base.tokenizer.decode(ids[head:]).startswith("From: A")
    read: list[list[int]] = []
    monkeypatch.setattr(
        "cartridge_core.initialization.sampled_chunks.prefill",
        lambda base, ids: read.append(ids) or prefill(base, ids),
    )
    for seed in (0, 1):
        INITIALIZERS["sampled_chunks"](sourced(base, "sampled_chunks", head + 18, seed, window_tokens=8))
    first, other = read
    assert first != other and first[:head] == other[:head] == ids[:head]
    text = "".join(f"<{token}>" for token in ids[head:])
    for window in (first[head : head + 8], first[head + 8 : head + 16], first[head + 16 :]):
        assert "".join(f"<{token}>" for token in window) in text


def test_windows_never_overlap_and_are_all_over_the_text() -> None:
    seen = set()
    for seed in range(200):
        drawn = sample_windows(range(100), 30, 8, seed)
        assert len(drawn) == 30 and drawn == sorted(set(drawn))
        seen |= set(drawn)
    assert seen == set(range(100))
    assert sample_windows(range(33), 33, 8, 0) == list(range(33))


def test_chunks_need_room_behind_the_head(tiny_base: Tiny, sourced: Sourced) -> None:
    with pytest.raises(TrainingError, match=r"no room for windows.*at least \d+ tokens"):
        INITIALIZERS["sampled_chunks"](sourced(tiny_base("qwen2"), "sampled_chunks", 5))


@pytest.mark.parametrize("name", [name for name in NAMES if name != "text"])
@pytest.mark.parametrize("num_tokens", [0, 1000])
def test_a_corpus_shorter_than_the_cartridge_is_refused(
    tiny_base: Tiny, sourced: Sourced, name: str, num_tokens: int
) -> None:
    with pytest.raises(TrainingError, match=rf"A Cartridge of {num_tokens} tokens cannot start from a corpus of \d+"):
        INITIALIZERS[name](sourced(tiny_base("qwen2"), name, num_tokens))


def test_options_of_another_initialiser_are_refused(tiny_base: Tiny, corpus: Corpus) -> None:
    base = tiny_base("qwen2")
    wrong = OPTIONS["text"].model_validate({"text": "x"})
    with pytest.raises(TrainingError, match="TextOptions were given where SampledChunksOptions"):
        INITIALIZERS["sampled_chunks"](InitializationSource(base, corpus, 80, options=wrong))
    with pytest.raises(TrainingError, match="NoneType were given where TextOptions"):
        INITIALIZERS["text"](InitializationSource(base, corpus, 80))
    assert INITIALIZERS["sampled_chunks"](InitializationSource(base, corpus, 80)).num_tokens == 80
