"""From logits to a token: greedy, temperature, nucleus; the same for a seed whatever else runs."""

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from cartridge_core.serving.sampling_params import SamplingParams


class Luck:
    """One number in [0, 1) a step.

    Args:
        seed: Of the request; None for any.
        index: Which of the request's answers.
    """

    def __init__(self, seed: int | None, index: int) -> None:
        self._random = random.Random() if seed is None else random.Random(f"{seed}/{index}")

    def draw(self) -> float:
        """The next number."""
        return self._random.random()


def choose(logits: Tensor, params: Sequence[SamplingParams], luck: Sequence[float]) -> Tensor:
    """The next token of each row.

    Args:
        logits: `[rows, vocabulary]`, fp32.
        params: One a row.
        luck: One a row, in [0, 1).

    Returns:
        `[rows]`.
    """
    tokens = logits.argmax(dim=-1)
    drawn = [row for row, param in enumerate(params) if param.temperature > 0]
    if not drawn:
        return tokens
    rows = torch.tensor(drawn, device=logits.device)
    temperature, top_p, chance = (
        torch.tensor(values, dtype=torch.float64, device=logits.device)[:, None]
        for values in (
            [params[row].temperature for row in drawn],
            [params[row].top_p for row in drawn],
            [luck[row] for row in drawn],
        )
    )
    probabilities = (logits[rows].double() / temperature).softmax(dim=-1)
    if bool((top_p < 1).any()):
        probabilities = _nucleus(probabilities, top_p)
    mass = probabilities.cumsum(dim=-1)
    # Inverse of the distribution function; right=True so that a token of no probability is never taken.
    place = torch.searchsorted(mass, chance * mass[:, -1:], right=True)
    tokens[rows] = place.clamp(max=logits.shape[-1] - 1)[:, 0]
    return tokens


def _nucleus(probabilities: Tensor, top_p: Tensor) -> Tensor:
    """Probabilities `[rows, vocabulary]` with the tokens outside each row's nucleus at 0.

    Tokens keep their places: what a row draws must not depend on whether another one asked for a nucleus.
    """
    ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
    # A token stays if those before it have not reached top_p; the likeliest stays always.
    out = (ordered.cumsum(dim=-1) - ordered >= top_p) & (top_p < 1)
    out[:, 0] = False
    return probabilities.masked_fill(torch.zeros_like(out).scatter(1, order, out), 0.0)
