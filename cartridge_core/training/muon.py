"""Muon for Cartridges: momentum whose update is orthogonalised for every KV head by itself."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the Newton-Schulz iteration: steep at zero, so that five rounds bring all singular values near one."""
_ROUNDS = 5


def orthogonalised(matrices: Tensor) -> Tensor:
    """The nearest matrices whose singular values are all near one (0.7 to 1.2), by Newton-Schulz iteration.

    Args:
        matrices: `[..., rows, columns]`.

    Returns:
        The same shape. A matrix of zeros stays one.
    """
    a, b, c = _COEFFICIENTS
    wide = matrices.mT if matrices.shape[-2] > matrices.shape[-1] else matrices
    x = wide / (wide.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(_ROUNDS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if matrices.shape[-2] > matrices.shape[-1] else x


class HeadwiseMuon(Optimizer):
    """Muon (Jordan 2024, https://kellerjordan.github.io/posts/muon/) over batches of matrices.

    A parameter is `[num_kv_heads, num_tokens, head_dim]`. Heads attend independently, so each gets an orthogonal update
    of its own, in which also directions with small gradients take the full step. Mixing the heads of a layer in one
    matrix, as `torch.optim.Muon` would have to, takes more steps to the same held-out loss (docs/training.md). The step
    is scaled by `sqrt(max(1, num_tokens / head_dim))`, as in that source; nothing decays.
    """

    def __init__(self, params: Iterable[Tensor] | Iterable[dict[str, Any]], lr: float, momentum: float) -> None:
        """Take parameters or groups of them.

        Args:
            params: Each at least two-dimensional.
            lr: Size of a step: about the root mean square change of a value times `sqrt(head_dim)`.
            momentum: Decay of the gradient's average, into which the newest gradient is mixed once more (Nesterov).
        """
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]  # no closure is used
        """Take one step with the gradients as they are."""
        for group in self.param_groups:
            momentum = group["momentum"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(parameter)
                average = state["momentum_buffer"].lerp_(parameter.grad, 1 - momentum)
                update = orthogonalised(parameter.grad.lerp(average, momentum))
                rows, columns = parameter.shape[-2:]
                parameter.add_(update, alpha=-group["lr"] * max(1.0, rows / columns) ** 0.5)
