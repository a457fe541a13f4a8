"""Re-rotated keys are the keys the model itself would have made at the new place."""

from collections.abc import Callable

import pytest
import torch

from cartridge_core.inference.prefix import full_cache
from cartridge_core.models import BaseModel
from cartridge_core.positions import rerotate

Tiny = Callable[[str], BaseModel]


def _keys_at(base: BaseModel, positions: torch.Tensor) -> list[torch.Tensor]:
    """First-layer keys of fixed tokens at these positions: deeper layers also change with what they attend to."""
    cache = full_cache(base)
    ids = torch.arange(10, 10 + len(positions))[None]
    base.model(input_ids=ids, position_ids=positions[None], past_key_values=cache, use_cache=True)
    return [layer.keys[0] for layer in cache.layers]


def test_equals_the_models_own_rotation(each_base: BaseModel) -> None:
    base = each_base
    before, after = torch.arange(12), torch.arange(12) + 700
    moved = rerotate(_keys_at(base, before)[0], before, after, base.inv_freq(0))
    assert (moved - _keys_at(base, after)[0]).abs().max() < 2e-4


def test_wrong_frequencies_are_seen(tiny_base: Tiny) -> None:
    # The tiny Llama scales its RoPE as Llama 3 does; plain frequencies must not pass for them.
    base = tiny_base("llama")
    before, after = torch.arange(12), torch.arange(12) + 700
    plain = 1.0 / 10000.0 ** (torch.arange(0, 16, 2) / 16)
    moved = rerotate(_keys_at(base, before)[0], before, after, plain)
    assert (moved - _keys_at(base, after)[0]).abs().max() > 1e-2


def test_windowed_layers_have_frequencies_of_their_own(tiny_base: Tiny) -> None:
    base = tiny_base("gemma3")
    assert not torch.equal(base.inv_freq(0), base.inv_freq(1))


def test_there_and_back_is_nowhere(tiny_base: Tiny) -> None:
    base = tiny_base("qwen2")
    keys = torch.randn(2, 5, 12)
    away = rerotate(keys, range(5), range(100, 105), base.inv_freq(0))
    back = rerotate(away, range(100, 105), range(5), base.inv_freq(0))
    assert torch.allclose(keys, back, atol=1e-5)
    assert not torch.allclose(keys, away, atol=1e-1)


def test_angles_are_exact_for_half_precision_keys(tiny_base: Tiny) -> None:
    base = tiny_base("qwen2")
    keys = torch.randn(2, 3, 12)
    start, end = [0, 1, 2], [4000, 4001, 4002]
    exact = rerotate(keys, start, end, base.inv_freq(0))
    rounded = rerotate(keys.bfloat16(), start, end, base.inv_freq(0))
    assert rounded.dtype == torch.bfloat16
    assert (exact - rounded.float()).abs().max() < 0.05


def test_channels_beyond_the_rotary_ones_stay() -> None:
    keys = torch.randn(1, 2, 8)
    moved = rerotate(keys, [0, 1], [5, 6], torch.tensor([1.0, 0.1]))
    assert torch.equal(moved[..., 4:], keys[..., 4:])
    assert not torch.equal(moved[..., :4], keys[..., :4])


@pytest.mark.parametrize(("start", "end", "half"), [([0], [1, 2], 2), ([0, 1, 2], [0, 1, 2], 2), ([0, 1], [0, 1], 5)])
def test_refuses_what_does_not_fit(start: list[int], end: list[int], half: int) -> None:
    with pytest.raises(ValueError, match=r"positions|channels"):
        rerotate(torch.zeros(1, 2, 8), start, end, torch.ones(half))
