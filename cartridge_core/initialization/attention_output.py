"""Attention of reference queries to a set of keys and to their own conversation's tokens, in fp32."""

from dataclasses import dataclass

import torch
from torch import Tensor

from cartridge_core.initialization.reference_queries import HeadQueries

_BLOCK = 1 << 21
"""Scores computed at once: little enough to stay in a processor's cache."""


@dataclass(frozen=True, eq=False)
class Keys:
    """Keys of one head and where they stand.

    Attributes:
        keys: `[m, head_dim]` fp32, rotated so that queries at their own positions may meet them.
        places: `[m]` int64, for the sliding window: tokens between a key and the first token of a conversation are
            `-1 - place`, so the last key before it has place -1.
        window: The layer's window, if it has one.
    """

    keys: Tensor
    places: Tensor
    window: int | None

    def scores(self, asked: HeadQueries) -> Tensor:
        """`[n, m]`; -inf where the window ends."""
        scores = asked.queries @ self.keys.T
        if self.window is not None:
            scores = scores.masked_fill(asked.index[:, None] - self.places >= self.window, -torch.inf)
        return scores

    def weights(self, asked: HeadQueries) -> tuple[Tensor, Tensor]:
        """Shares of the whole softmax: of each key `[n, m]`, and of the conversation's own tokens `[n]`."""
        scores = self.scores(asked)
        # The own tokens are one more column, so that one softmax serves both.
        shares = torch.cat((scores, asked.own_mass[:, None]), dim=1).softmax(dim=1)
        return shares[:, :-1], shares[:, -1]


def attend(asked: HeadQueries, keys: Keys, values: Tensor) -> Tensor:
    """Attention output `[n, head_dim]` over keys and own tokens."""
    output, _ = attend_and_score(asked, keys, values)
    return output


def attend_and_score(asked: HeadQueries, keys: Keys, values: Tensor) -> tuple[Tensor, Tensor]:
    """Attention output, and how much of it each key has.

    Args:
        asked: n queries.
        keys: m keys.
        values: `[m, head_dim]`.

    Returns:
        The output `[n, head_dim]`, and the sum over the queries of each key's squared share `[m]`.
    """
    output = torch.empty_like(asked.own_output)
    squares = torch.zeros(len(keys.keys), device=output.device)
    step = max(1, _BLOCK // max(len(keys.keys), 1))
    for start in range(0, len(asked), step):
        part = slice(start, start + step)
        shares, own = keys.weights(asked.at(part))
        output[part] = shares @ values + own[:, None] * asked.own_output[part]
        squares += shares.square().sum(dim=0)
    return output, squares
