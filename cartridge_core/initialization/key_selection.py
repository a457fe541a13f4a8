"""Which keys a Cartridge starts with: kept ones (arXiv 2602.16284, section 3.2) or centres of clusters.

All of them return, for one head, `count` keys and values out of m in ascending order of position; positions are those
in the piece of the corpus.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from cartridge_core.initialization.attention_output import Keys
from cartridge_core.initialization.reference_queries import HeadQueries

_OMP_QUERIES = 2048
"""Queries that matching pursuit looks at."""
_OMP_KEYS = 4
"""Keys that it takes at once (the authors' fast mode)."""
_CLUSTER_ROUNDS = 10
"""Rounds of the clustering; further ones change little."""


@dataclass(frozen=True, eq=False)
class ChosenKeys:
    """Keys `[count, head_dim]`, values `[count, head_dim]` and positions `[count]` (int64)."""

    keys: Tensor
    values: Tensor
    positions: Tensor


def by_rms(asked: HeadQueries, keys: Keys, values: Tensor, squares: Tensor, first: Tensor, count: int) -> ChosenKeys:
    """The keys with the highest root mean square of attention over the queries.

    Args:
        asked: n queries.
        keys: m keys of a piece of the corpus.
        values: `[m, head_dim]`.
        squares: `[m]`, each key's squared share of attention, summed over the queries.
        first: Positions of keys that are kept in any case: the attention sink.
        count: How many to keep.
    """
    score = squares.clone()
    score[first] = torch.inf
    # A stable sort, so that equal scores are parted alike everywhere.
    return _kept(keys, values, score.argsort(descending=True, stable=True)[:count])


def by_matching_pursuit(
    asked: HeadQueries, keys: Keys, values: Tensor, squares: Tensor, first: Tensor, count: int
) -> ChosenKeys:
    """The keys that, weighted, together restore the mass that each query gives to the corpus.

    Orthogonal matching pursuit with weights that are not negative. The weights are not kept: no server applies them.
    """
    some = torch.linspace(0, len(asked) - 1, min(len(asked), _OMP_QUERIES), device=squares.device).long()
    shares, _ = keys.weights(asked.at(some))
    mass = shares.sum(dim=1)
    taken = first
    weights = torch.ones(len(first), device=squares.device)
    while len(taken) < count:
        residual = mass - shares[:, taken] @ weights
        gain = shares.T @ residual
        gain[taken] = -torch.inf
        best = gain.argsort(descending=True, stable=True)[: min(_OMP_KEYS, count - len(taken))]
        taken = torch.cat((taken, best))
        columns = shares[:, taken]
        gram = columns.T @ columns
        ridge = 1e-6 * gram.diagonal().mean() + torch.finfo(gram.dtype).tiny
        solved = torch.linalg.solve(gram + ridge * torch.eye(len(gram), device=gram.device), columns.T @ mass)
        weights = solved.clamp(min=0)
    return _kept(keys, values, taken)


def by_clusters(
    asked: HeadQueries, keys: Keys, values: Tensor, squares: Tensor, first: Tensor, count: int
) -> ChosenKeys:
    """Centres of clusters of all keys, weighted by root mean square attention; the kept first ones are their own.

    Distance is measured as the queries see it: two keys are close where their scores are. Clustering starts from the
    keys of `by_rms`. A centre stands at the weighted mean of its keys' positions.
    """
    kept = by_rms(asked, keys, values, squares, first, count)
    if len(keys.keys) <= count:
        return kept
    rest = torch.ones(len(keys.keys), dtype=torch.bool, device=squares.device)
    rest[first] = False
    places = rest.nonzero()[:, 0]
    power, axes = torch.linalg.eigh(asked.queries.T @ asked.queries / len(asked))
    seen = keys.keys[places] @ (axes * power.clamp(min=0).sqrt())
    weight = squares[places].sqrt() + torch.finfo(squares.dtype).tiny
    start = kept.positions[~torch.isin(kept.positions, first)]
    centres = seen[torch.searchsorted(places, start)]
    for _ in range(_CLUSTER_ROUNDS):
        nearest = torch.cdist(seen, centres).argmin(dim=1)
        total, mean = _means(seen, weight, nearest, len(centres))
        centres = torch.where(total[:, None] > 0, mean, centres)
    nearest = torch.cdist(seen, centres).argmin(dim=1)
    total, merged = _means(keys.keys[places], weight, nearest, len(centres))
    _, merged_values = _means(values[places], weight, nearest, len(centres))
    _, where = _means(places[:, None].float(), weight, nearest, len(centres))
    # A cluster that lost all its keys stays the key that it began with.
    filled = (total > 0)[:, None]
    merged = torch.where(filled, merged, keys.keys[start])
    merged_values = torch.where(filled, merged_values, values[start])
    positions = torch.where(total > 0, where[:, 0].round().long(), start)
    order = positions.argsort(stable=True)
    return ChosenKeys(
        torch.cat((keys.keys[first], merged[order])),
        torch.cat((values[first], merged_values[order])),
        torch.cat((first, positions[order])),
    )


SELECTIONS = {"rms": by_rms, "omp": by_matching_pursuit, "merged": by_clusters, "optimized": by_rms}
"""`AttentionMatchingOptions.keys` to how keys are chosen; those of `optimized` are moved afterwards."""


def _kept(keys: Keys, values: Tensor, chosen: Tensor) -> ChosenKeys:
    chosen = chosen.sort().values
    return ChosenKeys(keys.keys[chosen], values[chosen], chosen)


def _means(rows: Tensor, weight: Tensor, group: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Total weight `[count]` and weighted means `[count, width]` of the rows of each group."""
    total = weight.new_zeros(count).index_add_(0, group, weight)
    sums = rows.new_zeros(count, rows.shape[1]).index_add_(0, group, rows * weight[:, None])
    return total, sums / total.clamp(min=torch.finfo(total.dtype).tiny)[:, None]
