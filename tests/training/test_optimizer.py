import pytest
import torch

from cartridge_core.training.config import TrainingConfig
from cartridge_core.training.optimizer import OPTIMIZERS, set_learning_rate


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_nothing_decays(name: str) -> None:
    """Without a gradient a key stays where it is, whatever the defaults of the library are."""
    parameter = torch.full((6, 4), 2.0, requires_grad=True)
    optimizer = OPTIMIZERS[name]([parameter], TrainingConfig.model_validate({"num_tokens": 8, "optimizer": name}))
    parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert torch.equal(parameter.detach(), torch.full((6, 4), 2.0))


def test_muon_moves_all_directions_alike() -> None:
    """Singular values of the gradient span a factor of 100, those of the update only what its iteration leaves."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(n, 4, generator=generator))[0] for n in (12, 8))
    parameter = torch.zeros(12, 8, requires_grad=True)
    config = TrainingConfig(num_tokens=13, optimizer="muon", learning_rate=0.5)
    optimizer = OPTIMIZERS["muon"]([parameter], config)
    parameter.grad = left @ torch.diag(torch.tensor([1.0, 0.3, 0.1, 0.01])) @ right.T
    optimizer.step()
    moved = torch.linalg.svdvals(parameter.detach())[:4] / (0.5 * (12 / 8) ** 0.5)
    assert moved.min() > 0.3
    assert moved.max() < 1.4
    (group,) = optimizer.param_groups
    assert group["momentum"] == 0.9


def test_the_learning_rate_reaches_the_next_step() -> None:
    parameter = torch.zeros(3, 2, requires_grad=True)
    optimizer = OPTIMIZERS["adamw"]([parameter], TrainingConfig(num_tokens=8))
    set_learning_rate(optimizer, 0.25)
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    torch.testing.assert_close(parameter.detach(), torch.full((3, 2), -0.25))
