import pytest
import torch

from cartridge_core.training.config import TrainingConfig
from cartridge_core.training.muon import orthogonal_factor
from cartridge_core.training.optimizer import OPTIMIZERS, set_learning_rate


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_nothing_decays(name: str) -> None:
    """Without a gradient a key stays where it is, whatever the defaults of the library are."""
    parameters = [torch.full((2, 6, 4), 2.0, requires_grad=True) for _ in range(2)]
    optimizer = OPTIMIZERS[name](parameters, TrainingConfig.model_validate({"num_tokens": 8, "optimizer": name}))
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for parameter in parameters:
        assert torch.equal(parameter.detach(), torch.full((2, 6, 4), 2.0))


def test_muon_moves_all_directions_of_each_head_alike() -> None:
    """Singular values of the gradient span a factor of 100, those of the update are all the same."""
    generator = torch.Generator().manual_seed(0)
    config = TrainingConfig(num_tokens=13, optimizer="muon", learning_rate=0.5, value_learning_rate_ratio=1)
    key, value = (torch.zeros(2, 12, 8, requires_grad=True) for _ in range(2))
    optimizer = OPTIMIZERS["muon"]([key, value], config)
    for parameter in (key, value):
        left, right = (torch.linalg.qr(torch.randn(2, n, 4, generator=generator))[0] for n in (12, 8))
        # The second head's gradient is tiny as a whole: it moves as far as the first.
        weak = torch.tensor([1.0, 1e-3])[:, None, None]
        parameter.grad = weak * left @ torch.diag(torch.tensor([1.0, 0.3, 0.1, 0.01])) @ right.mT
    optimizer.step()
    for parameter in (key, value):
        moved = torch.linalg.svdvals(parameter.detach())[:, :4] / (0.5 * (12 / 8) ** 0.5)
        torch.testing.assert_close(moved, torch.ones_like(moved), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("rows", "columns"), [(12, 8), (8, 12), (8, 8), (2047, 128)])
@pytest.mark.parametrize("size", [1e-30, 1e-5, 1e20])
def test_the_orthogonal_factor_is_that_of_the_decomposition(size: float, rows: int, columns: int) -> None:
    generator = torch.Generator().manual_seed(2)
    least = min(rows, columns)
    left, right = (torch.linalg.qr(torch.randn(3, n, least, generator=generator))[0] for n in (rows, columns))
    found = orthogonal_factor(left @ torch.diag(size * torch.logspace(0, -2.5, least)) @ right.mT)
    torch.testing.assert_close(found, left @ right.mT, atol=2e-4, rtol=1e-3)


def test_directions_without_a_gradient_do_not_move() -> None:
    """Half of the directions have none, and rounding must not be blown up to one."""
    generator = torch.Generator().manual_seed(3)
    left, right = (torch.linalg.qr(torch.randn(1, n, 8, generator=generator))[0] for n in (12, 8))
    gradient = left[..., :4] @ right[..., :4].mT
    moved = orthogonal_factor(gradient)
    across = (moved @ right[..., 4:]).norm() / moved.norm()
    assert across < 2e-3
    assert torch.equal(orthogonal_factor(torch.zeros(1, 12, 8)), torch.zeros(1, 12, 8))


def test_muon_equals_torchs_own_for_a_single_head() -> None:
    """The library's levels singular values to between 0.7 and 1.2 only, in bfloat16: direction and size agree."""
    generator = torch.Generator().manual_seed(1)
    ours, theirs = torch.zeros(1, 12, 8, requires_grad=True), torch.zeros(12, 8, requires_grad=True)
    config = TrainingConfig(num_tokens=13, optimizer="muon", learning_rate=0.5, momentum=0.9)
    optimizers = (
        OPTIMIZERS["muon"]([ours, torch.zeros(1, 12, 8, requires_grad=True)], config),
        torch.optim.Muon([theirs], lr=0.5, momentum=0.9, weight_decay=0.0, adjust_lr_fn="original"),
    )
    for _ in range(3):
        gradient = torch.randn(12, 8, generator=generator)
        ours.grad, theirs.grad = gradient[None], gradient
        for optimizer in optimizers:
            optimizer.step()
    one, other = ours.detach()[0], theirs.detach()
    assert (one * other).sum() / (one.norm() * other.norm()) > 0.97
    assert 0.85 < other.norm() / one.norm() < 1.15


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_values_take_their_share_of_the_learning_rate(name: str) -> None:
    key, value = (torch.zeros(1, 3, 2, requires_grad=True) for _ in range(2))
    config = TrainingConfig.model_validate({"num_tokens": 8, "optimizer": name, "value_learning_rate_ratio": 3.0})
    optimizer = OPTIMIZERS[name]([key, value], config)
    set_learning_rate(optimizer, 0.25)
    for parameter in (key, value):
        parameter.grad = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]]])
    optimizer.step()
    assert key.detach().norm() > 0
    torch.testing.assert_close(value.detach(), 3 * key.detach())


def test_the_learning_rate_reaches_the_next_step() -> None:
    parameters = [torch.zeros(3, 2, requires_grad=True) for _ in range(2)]
    optimizer = OPTIMIZERS["adamw"](parameters, TrainingConfig(num_tokens=8, optimizer="adamw"))
    set_learning_rate(optimizer, 0.25)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    torch.testing.assert_close(parameters[0].detach(), torch.full((3, 2), -0.25))
