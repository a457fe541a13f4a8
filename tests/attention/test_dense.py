"""The core's gradient, written out, is that of the formula."""

import pytest
import torch

from cartridge_core.attention.dense import attend, hiding


def inputs(dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    # KV heads 2, rows 3, two query heads for each KV head, 4 queries, 5 own keys, 6 of the prefix, width 3.
    shapes = ((2, 3, 8, 3), (2, 3, 5, 3), (2, 3, 5, 3), (2, 6, 3), (2, 6, 3))
    return [torch.randn(*shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


def biases(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    near = torch.arange(6) + torch.arange(4)[:, None] < 3
    later = torch.arange(5) > torch.arange(4)[:, None]
    return hiding(near, dtype).expand(3, 1, 4, 6), hiding(later, dtype).expand(3, 1, 4, 5)


@pytest.mark.parametrize("cap", [0.0, 0.7])
@pytest.mark.parametrize("windowed", [False, True])
def test_gradients(cap: float, windowed: bool) -> None:
    prefix_bias, own_bias = biases()
    assert torch.autograd.gradcheck(
        lambda *tensors: attend(*tensors, prefix_bias if windowed else None, own_bias, cap), inputs()
    )


@pytest.mark.parametrize("cap", [0.0, 0.7])
def test_equals_the_formula(cap: float) -> None:
    query, key, value, prefix_key, prefix_value = inputs()
    prefix_bias, own_bias = biases()
    out = attend(query, key, value, prefix_key, prefix_value, prefix_bias, own_bias, cap)
    for row in range(3):
        for head in range(2):
            keys = torch.cat((prefix_key[head], key[head, row]))
            values = torch.cat((prefix_value[head], value[head, row]))
            scores = query[head, row] @ keys.T
            scores = cap * (scores / cap).tanh() if cap else scores
            scores = scores + torch.cat((prefix_bias[row, 0], own_bias[row, 0]), dim=1).repeat(2, 1)
            torch.testing.assert_close(out[head, row], scores.softmax(dim=1) @ values)


def test_only_what_is_wanted_gets_a_gradient() -> None:
    query, key, value, prefix_key, prefix_value = inputs()
    _, own_bias = biases()
    out = attend(query.detach(), key.detach(), value.detach(), prefix_key, prefix_value.detach(), None, own_bias)
    out.sum().backward()
    assert prefix_key.grad is not None
    assert [tensor.grad for tensor in (query, key, value, prefix_value)] == [None] * 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_with_and_without_gradients_the_same(dtype: torch.dtype) -> None:
    tensors, (prefix_bias, own_bias) = inputs(dtype), biases(dtype)
    kept = attend(*tensors, prefix_bias, own_bias)
    with torch.no_grad():
        assert torch.equal(attend(*tensors, prefix_bias, own_bias), kept)
    exact = attend(*(t.detach().float() for t in tensors), *(b.float() for b in biases(torch.float32)))
    torch.testing.assert_close(kept.float(), exact, atol=3e-2, rtol=3e-2)
