"""Closed-form values: the least-squares step of attention matching (arXiv 2602.16284, section 3.3)."""

import torch
from torch import Tensor

from cartridge_core.errors import TrainingError
from cartridge_core.initialization.attention_output import Keys
from cartridge_core.initialization.reference_queries import HeadQueries


def fit_values(asked: HeadQueries, keys: Keys, start: Tensor, wanted: Tensor, ridge: float) -> Tensor:
    """Values that bring the attention output closest to the wanted one, the first key's value held.

    The conversation's own tokens are part of the softmax, as they are when the Cartridge is served, so the values also
    make up for what the kept keys lack in mass: no server could apply a bias to their scores (beta is 0). Solved
    through normal equations and Cholesky; the ridge pulls towards `start`, so that a key that is hardly looked at keeps
    its value.

    Args:
        asked: n queries.
        keys: p keys, the attention sink first.
        start: `[p, head_dim]`, values to stay close to.
        wanted: `[n, head_dim]`, attention output to reach.
        ridge: Share of the mean diagonal of the normal equations.

    Returns:
        `[p, head_dim]`.

    Raises:
        TrainingError: The equations have no finite solution.
    """
    shares, own = keys.weights(asked)
    missing = wanted - own[:, None] * asked.own_output - shares @ start
    free = shares[:, 1:]
    gram = free.T @ free
    scale = gram.diagonal().mean().clamp(min=torch.finfo(gram.dtype).tiny)
    factor, failed = torch.linalg.cholesky_ex(gram + ridge * scale * torch.eye(len(gram), device=gram.device))
    if int(failed):
        raise TrainingError(
            f"The values of a Cartridge of {len(start)} tokens cannot be fitted with ridge {ridge}.",
            "Choose a larger ridge, or check that the model's keys are finite.",
        )
    change = torch.cholesky_solve(free.T @ missing, factor)
    return torch.cat((start[:1], start[1:] + change))
