"""A warm start from a previous Cartridge."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cartridge_core.cartridge import Cartridge
from cartridge_core.errors import ArtifactError, BaseModelMismatchError, TrainingError
from cartridge_core.inference.prefix import prefill
from cartridge_core.initialization.first_tokens import first_tokens
from cartridge_core.initialization.options import CartridgeOptions
from cartridge_core.initialization.previous_cartridge import check_previous, previous_cartridge
from cartridge_core.initialization.sampled_chunks import head_length, sample_windows
from cartridge_core.initialization.source import InitializationSource
from cartridge_core.models import BaseModel
from cartridge_core.prefix_kv import PrefixKV
from cartridge_core.rendering import prefix_token_ids, template_digest
from tests.initialization.conftest import Sourced
from tests.initialization.test_initializers import tensors
from tests.samples import cartridge_of
from tests.training.test_packed_attention import build as with_shared_layers

Tiny = Callable[[str], BaseModel]


def warm(source: InitializationSource, cartridge: Cartridge, folder: Path) -> InitializationSource:
    cartridge.save(folder)
    return replace(source, options=CartridgeOptions(cartridge=cartridge.digest, folder=folder))


def test_a_cartridge_of_the_same_length_is_taken_as_it_is(
    each_base: BaseModel, sourced: Sourced, tmp_path: Path
) -> None:
    before = first_tokens(sourced(each_base, num_tokens=30))
    source = warm(sourced(each_base, num_tokens=30), cartridge_of(each_base, before), tmp_path)
    made = previous_cartridge(source)
    assert made.next_position == 30
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(tensors(made), tensors(before), strict=True))


def test_further_tokens_are_windows_read_behind_it(each_base: BaseModel, sourced: Sourced, tmp_path: Path) -> None:
    # The previous Cartridge is the head of a text, so what is read behind it can be compared with one whole reading.
    base = each_base
    corpus = sourced(base).corpus
    ids = prefix_token_ids(base.tokenizer, corpus.text())
    source = warm(sourced(base, num_tokens=42, seed=3), cartridge_of(base, prefill(base, ids[:30])), tmp_path)
    made = previous_cartridge(source)
    text = ids[head_length(base, ids) :]
    whole = prefill(base, ids[:30] + sample_windows(text, 12, 64, 3))
    assert made.num_tokens == made.next_position == 42
    for ours, theirs in zip(tensors(made), tensors(whole), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
        assert not ours.is_inference()


def test_layers_without_keys_of_their_own_stay_so(sourced: Sourced, tmp_path: Path) -> None:
    base = with_shared_layers("gemma3n")
    source = sourced(base, num_tokens=42)
    made = previous_cartridge(warm(source, cartridge_of(base, first_tokens(replace(source, num_tokens=30))), tmp_path))
    assert made.num_tokens == 42
    assert [keys is None for keys in made.keys] == [not spec.has_kv for spec in base.layer_specs]
    assert any(keys is None for keys in made.keys)


def test_what_makes_no_sense_is_refused(tiny_base: Tiny, sourced: Sourced, tmp_path: Path) -> None:
    base = tiny_base("qwen2")
    prefix = first_tokens(sourced(base, num_tokens=30))
    good = cartridge_of(base, prefix)
    source = warm(sourced(base, num_tokens=30), good, tmp_path)
    with pytest.raises(TrainingError, match=r"has 30 tokens; one of 20 cannot start from it\. Choose at least 30"):
        previous_cartridge(replace(source, num_tokens=20))
    with pytest.raises(TrainingError, match="cannot start from a rest of the corpus of"):
        previous_cartridge(replace(source, num_tokens=900))
    with pytest.raises(ArtifactError, match="not aaaaaaaaaaaa"):
        previous_cartridge(replace(source, options=CartridgeOptions(cartridge="a" * 64, folder=tmp_path)))
    with pytest.raises(TrainingError, match="Nobody says where"):
        previous_cartridge(replace(source, options=CartridgeOptions(cartridge=good.digest)))
    with pytest.raises(BaseModelMismatchError, match="tiny-qwen2"):
        previous_cartridge(replace(source, base=tiny_base("qwen3")))

    def check(cartridge: Cartridge) -> None:
        check_previous(cartridge, base.identity, template_digest(base.tokenizer), 30)

    check(good)
    with pytest.raises(TrainingError, match="another rendering"):
        check(cartridge_of(base, prefix, template_digest="0" * 64))
    with pytest.raises(TrainingError, match="starts at position 31"):
        check(cartridge_of(base, PrefixKV(prefix.keys, prefix.values, 31)))
