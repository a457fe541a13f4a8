import pytest
import torch

from cartridge_core.cartridge import PrefixKV
from cartridge_core.training.trainable_prefix import TrainablePrefix


def initial() -> PrefixKV:
    generator = torch.Generator().manual_seed(0)
    keys, values = ([torch.randn(2, 5, 3, generator=generator).bfloat16() for _ in range(2)] for _ in range(2))
    return PrefixKV([keys[0], None, keys[1]], [values[0], None, values[1]], 9)


@pytest.mark.parametrize("frozen", [0, 1, 3])
def test_starts_exactly_where_it_is_told(frozen: int) -> None:
    start = initial()
    prefix = TrainablePrefix(start, frozen).prefix()
    assert prefix.next_position == 9
    for before, after in zip((*start.keys, *start.values), (*prefix.keys, *prefix.values), strict=True):
        assert (before is None) == (after is None)
        if before is not None and after is not None:
            assert after.dtype == torch.float32
            assert torch.equal(before.float(), after)


def test_masters_are_one_tensor_for_keys_and_one_for_values_of_each_layer() -> None:
    parameters = TrainablePrefix(initial(), 1).parameters()
    assert [tuple(parameter.shape) for parameter in parameters] == [(2, 4, 3)] * 4
    assert all(parameter.is_leaf and parameter.requires_grad for parameter in parameters)


def test_a_gradient_reaches_its_token_and_head() -> None:
    prefix = TrainablePrefix(initial(), 1)
    key = prefix.prefix().keys[0]
    assert key is not None
    key[1, 2].sum().backward()
    gradient = prefix.parameters()[0].grad
    assert gradient is not None
    expected = torch.zeros(2, 4, 3)
    expected[1, 1] = 1  # the third token is the second that is trained
    assert torch.equal(gradient, expected)


def test_the_start_is_copied() -> None:
    start = PrefixKV([torch.ones(1, 3, 2)], [torch.ones(1, 3, 2)], 3)
    prefix = TrainablePrefix(start, 1)
    assert start.keys[0] is not None
    start.keys[0].zero_()
    key = prefix.prefix().keys[0]
    assert key is not None
    assert (key == 1).all()
