import pytest
import torch

from cartridge_core.training.config import TrainingConfig
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
    """Singular values of the gradient span a factor of 100, those of the update only what its iteration leaves."""
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
        assert moved.min() > 0.3
        assert moved.max() < 1.4


def test_muon_equals_torchs_own_for_a_single_head() -> None:
    """The library's computes in bfloat16, so that digits differ; direction and size do not."""
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
    torch.testing.assert_close(ours.detach()[0], theirs.detach(), atol=0.03, rtol=0.03)


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
