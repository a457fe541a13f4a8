"""Where a Cartridge starts."""

from collections.abc import Callable

import pytest
import torch

from cartridge_core.errors import TrainingError
from cartridge_core.inference.prefix import prefill
from cartridge_core.initialization import INITIALIZERS
from cartridge_core.models import BaseModel
from cartridge_core.rendering import prefix_token_ids

Tiny = Callable[[str], BaseModel]
TEXT = "The ward of Ada Lind is green. Her room is seven and her nurse is Tom Berg.\n" * 3


@pytest.mark.parametrize("name", INITIALIZERS)
def test_every_initialiser_fits_the_model(each_base: BaseModel, name: str) -> None:
    prefix = INITIALIZERS[name](each_base, TEXT, 12, 0)
    assert prefix.num_tokens == prefix.next_position == 12
    for spec, key, value in zip(each_base.layer_specs, prefix.keys, prefix.values, strict=True):
        assert key is not None and value is not None
        assert key.shape == value.shape == (spec.num_kv_heads, 12, spec.head_dim)
        assert key.isfinite().all() and value.isfinite().all()


@pytest.mark.parametrize("name", INITIALIZERS)
def test_the_first_token_is_the_real_one(each_base: BaseModel, name: str) -> None:
    real = prefill(each_base, prefix_token_ids(each_base.tokenizer, TEXT)[:1])
    made = INITIALIZERS[name](each_base, TEXT, 12, 0)
    for ours, theirs in zip([*made.keys, *made.values], [*real.keys, *real.values], strict=True):
        assert ours is not None and theirs is not None
        assert torch.allclose(ours[:, :1], theirs, atol=1e-5)


def test_first_tokens_are_the_head_of_the_wrapped_corpus(each_base: BaseModel) -> None:
    whole = prefill(each_base, prefix_token_ids(each_base.tokenizer, TEXT))
    made = INITIALIZERS["first_tokens"](each_base, TEXT, 20, 0)
    for ours, theirs in zip([*made.keys, *made.values], [*whole.keys, *whole.values], strict=True):
        assert ours is not None and theirs is not None
        assert torch.allclose(ours, theirs[:, :20], atol=1e-5)


def test_seeds_decide_random_vectors_and_scale_is_real(tiny_base: Tiny) -> None:
    base = tiny_base("qwen2")
    first, same, other = (INITIALIZERS["random_vectors"](base, TEXT, 40, seed).keys[0] for seed in (1, 1, 2))
    real = INITIALIZERS["first_tokens"](base, TEXT, 40, 0).keys[0]
    assert first is not None and same is not None and other is not None and real is not None
    assert torch.equal(first, same) and not torch.equal(first[:, 1:], other[:, 1:])
    assert not torch.allclose(first[:, 1:], real[:, 1:], atol=1e-2)
    assert (first.std(dim=1) / real.std(dim=1)).sub(1).abs().mean() < 0.3


@pytest.mark.parametrize("name", INITIALIZERS)
@pytest.mark.parametrize("num_tokens", [0, 100_000])
def test_a_corpus_shorter_than_the_cartridge_is_refused(tiny_base: Tiny, name: str, num_tokens: int) -> None:
    with pytest.raises(TrainingError, match=rf"A Cartridge of {num_tokens} tokens cannot start from a corpus of \d+"):
        INITIALIZERS[name](tiny_base("qwen2"), TEXT, num_tokens, 0)
