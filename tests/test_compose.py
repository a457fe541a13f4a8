"""Cartridges one behind the other: the same as texts read where they then stand."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from cartridge_core.cartridge import Cartridge
from cartridge_core.compose import compose
from cartridge_core.errors import ArtifactError, BaseModelMismatchError, UnsupportedModelError
from cartridge_core.inference.generate import GenerationConfig, generate
from cartridge_core.inference.prefix import full_cache, prefill
from cartridge_core.models import BaseModel
from cartridge_core.positions import inverse_frequencies
from tests.samples import cartridge_of

FIRST, SECOND, THIRD = list(range(20, 32)), list(range(40, 47)), list(range(60, 65))


def made(base: BaseModel, *texts: list[int]) -> list[Cartridge]:
    return [cartridge_of(base, prefill(base, text)) for text in texts]


@torch.inference_mode()
def read_at(base: BaseModel, text: list[int], start: int) -> tuple[list[Tensor], list[Tensor]]:
    """Keys and values of a text that the model itself reads from a position on, with nothing in front."""
    cache = full_cache(base)
    positions = torch.arange(start, start + len(text))[None]
    base.model(input_ids=torch.tensor([text]), position_ids=positions, past_key_values=cache, use_cache=True)
    return [layer.keys[0].clone() for layer in cache.layers], [layer.values[0].clone() for layer in cache.layers]


def test_each_ends_where_the_question_begins(each_base: BaseModel) -> None:
    texts = (FIRST, SECOND, THIRD)
    composed = compose(made(each_base, *texts))
    total = sum(map(len, texts))
    assert (composed.num_tokens, composed.next_position) == (total, total)
    by_hand = [read_at(each_base, text, total - len(text)) for text in texts]
    for layer in range(len(each_base.layer_specs)):
        keys, values = (torch.cat([part[side][layer] for part in by_hand], dim=1) for side in (0, 1))
        torch.testing.assert_close(composed.keys[layer], keys, atol=2e-4, rtol=1e-4)
        torch.testing.assert_close(composed.values[layer], values, atol=2e-4, rtol=1e-4)


def test_one_alone_stays_as_it_is(each_base: BaseModel) -> None:
    (alone,) = made(each_base, FIRST)
    composed = compose([alone])
    assert composed.next_position == len(FIRST)
    assert all(torch.equal(a, b) for a, b in zip(composed.keys, alone.keys, strict=True) if a is not None)


def test_the_order_does_not_matter_under_full_attention(tiny_base: Callable[[str], BaseModel]) -> None:
    for kind, same in (("llama", True), ("qwen2", True), ("mistral", False)):
        base = tiny_base(kind)
        first, second = made(base, FIRST, SECOND)
        prompt = [[70, 71, 72]]
        said = [
            generate(base, compose(order), prompt, GenerationConfig(max_new_tokens=8))[0].token_ids
            for order in ([first, second], [second, first])
        ]
        assert (said[0] == said[1]) == same, kind


def test_in_a_window_the_last_one_is_seen_as_if_alone(tiny_base: Callable[[str], BaseModel]) -> None:
    base = tiny_base("mistral")
    first, second = made(base, FIRST, list(range(40, 52)))
    prompt, config = [[70, 71]], GenerationConfig(max_new_tokens=6)
    # A window of eight holds nothing of what stands in front of twelve tokens.
    both, one = (generate(base, prefix, prompt, config)[0] for prefix in (compose([first, second]), second.prefix()))
    assert both.token_ids == one.token_ids


def test_what_cannot_be_composed(tiny_base: Callable[[str], BaseModel]) -> None:
    base = tiny_base("qwen2")
    first, second = made(base, FIRST, SECOND)
    with pytest.raises(ArtifactError, match="no Cartridge to compose"):
        compose([])
    with pytest.raises(BaseModelMismatchError, match="belongs to tiny-llama"):
        compose([first, *made(tiny_base("llama"), SECOND)])
    apart = cartridge_of(base, replace(second.prefix(), next_position=50))
    for order in ([first, apart], [apart, first]):
        with pytest.raises(ArtifactError, match="leaves positions free"):
            compose(order)


def test_frequencies_of_a_manifest_are_the_models_own(each_base: BaseModel) -> None:
    for index, layer in enumerate(each_base.layer_specs):
        assert torch.equal(inverse_frequencies(layer), each_base.inv_freq(index))


def test_frequencies_that_nobody_can_know(tiny_base: Callable[[str], BaseModel]) -> None:
    layer = tiny_base("qwen2").layer_specs[0]
    changing, unsaid = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}, {"rope_type": "yarn"}
    for rope in (changing, unsaid, {}):
        with pytest.raises(UnsupportedModelError, match=r"RoPE"):
            inverse_frequencies(layer.model_copy(update={"rope": rope}))
