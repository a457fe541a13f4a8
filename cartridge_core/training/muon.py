"""Muon for Cartridges: momentum whose spectrum is levelled for every KV head by itself, or taken to another power."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

_FLOOR = 1e-3
"""Singular values below this share of the largest are rounding, or were never asked about: they shrink with their size,
and do not count in an update's own size."""


def levelled(matrices: Tensor, exponent: float) -> Tensor:
    """Matrices with the same singular vectors, their singular values taken to a power.

    With `M = U S V^T` this is `c U S^exponent V^T`, where c brings the root mean square of the new singular values to
    1. At 0 it is Muon's orthogonal factor; at 1 the matrix as it was, but for its size. Below 0 the weakest directions
    move most, as Newton's method would have it where weak gradients come from weak curvature.

    Args:
        matrices: `[..., rows, columns]`.
        exponent: At most 1.

    Returns:
        The same shape and type. A matrix of zeros stays one.
    """
    tall = matrices if matrices.shape[-2] >= matrices.shape[-1] else matrices.mT
    # The Gram matrix squares the ratio of singular values: in single precision the floor would drown in rounding.
    exact = tall.double()
    squares, right = torch.linalg.eigh(exact.mT @ exact)
    largest = squares[..., -1:].clamp(min=torch.finfo(torch.float64).tiny)
    shares = squares / largest
    values = shares.clamp(min=_FLOOR**2).sqrt()
    powers = values**exponent
    counted = shares >= _FLOOR**2
    total = (powers.square() * counted).sum(dim=-1, keepdim=True)
    # Of zeros nothing counts, and any size will do.
    size = torch.where(total > 0, total / counted.sum(dim=-1, keepdim=True).clamp(min=1), 1.0).sqrt()
    scale = powers / (size * values * largest.sqrt())
    update = (exact @ (right * scale[..., None, :]) @ right.mT).to(matrices.dtype)
    return update if tall is matrices else update.mT


class HeadwiseMuon(Optimizer):
    """Muon (Jordan 2024, https://kellerjordan.github.io/posts/muon/) over batches of matrices.

    A parameter is `[num_kv_heads, num_tokens, head_dim]`. Heads attend independently, so each gets an update of its
    own, in which also directions with small gradients take a full step. Mixing the heads of a layer in one matrix, as
    `torch.optim.Muon` would have to, takes more steps to the same held-out loss (docs/training.md). The step is scaled
    by `sqrt(max(1, num_tokens / head_dim))`, as in that source; nothing decays.
    """

    def __init__(
        self, params: Iterable[Tensor] | Iterable[dict[str, Any]], lr: float, momentum: float, exponent: float = 0.0
    ) -> None:
        """Take parameters or groups of them.

        Args:
            params: Each at least two-dimensional.
            lr: Size of a step: about the root mean square change of a value times `sqrt(head_dim)`.
            momentum: Decay of the gradient's average, into which the newest gradient is mixed once more (Nesterov).
            exponent: Power of the singular values (`levelled`).
        """
        super().__init__(params, {"lr": lr, "momentum": momentum, "exponent": exponent})

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
                update = levelled(parameter.grad.lerp(average, momentum), group["exponent"])
                rows, columns = parameter.shape[-2:]
                parameter.add_(update, alpha=-group["lr"] * max(1.0, rows / columns) ** 0.5)
