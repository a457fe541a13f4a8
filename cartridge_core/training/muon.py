"""Muon for Cartridges: momentum in which all directions of a KV head move alike."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

_POLAR_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
    (1.875, -1.25, 0.375),
)
"""Odd polynomials `a s + b s^3 + c s^5` that take singular values from 1e-3 to 1 to within 1e-4 of 1 (arXiv 2505.16932,
whose last one repeats). Smaller ones are rounding, or were never asked about: they shrink with their size."""


def orthogonal_factor(matrices: Tensor) -> Tensor:
    """The nearest matrices whose singular values are all the same: `U V^T` of `M = U S V^T`.

    By matrix products alone: an eigendecomposition of every head takes a GPU as long as the rest of the training step.

    Args:
        matrices: `[..., rows, columns]`, fp32.

    Returns:
        The same shape. A matrix of zeros stays one.
    """
    tall = matrices if matrices.shape[-2] >= matrices.shape[-1] else matrices.mT
    tiny = torch.finfo(matrices.dtype).tiny
    # First to a size at which squares have digits; the norm of the Gram matrix then bounds the largest one's square.
    found = tall / tall.abs().amax(dim=(-2, -1), keepdim=True).clamp(min=tiny)
    found = found / (found.mT @ found).norm(dim=(-2, -1), keepdim=True).clamp(min=tiny).sqrt()
    for linear, cubic, quintic in _POLAR_EXPRESS:
        gram = found.mT @ found
        found = linear * found + found @ (cubic * gram + quintic * gram @ gram)
    return found if tall is matrices else found.mT


class HeadwiseMuon(Optimizer):
    """Muon (Jordan 2024, https://kellerjordan.github.io/posts/muon/) over batches of matrices.

    A parameter is `[num_kv_heads, num_tokens, head_dim]`. Heads attend independently, so each gets an update of its
    own, in which also directions with small gradients take a full step. Mixing the heads of a layer in one matrix, as
    `torch.optim.Muon` would have to, takes more steps to the same held-out loss (docs/training.md). The step is scaled
    by `sqrt(max(1, num_tokens / head_dim))`, as in that source; nothing decays.
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
                update = orthogonal_factor(parameter.grad.lerp(average, momentum))
                rows, columns = parameter.shape[-2:]
                parameter.add_(update, alpha=-group["lr"] * max(1.0, rows / columns) ** 0.5)
