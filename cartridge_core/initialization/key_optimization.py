"""Keys moved by gradient, one head at a time, so that the best values for them fit the corpus's attention output."""

from dataclasses import replace

import torch
from torch import Tensor

from cartridge_core.initialization.attention_output import Keys
from cartridge_core.initialization.reference_queries import HeadQueries
from cartridge_core.initialization.value_fit import fit_values

_BATCH = 4096
"""Queries a step."""


def optimize_keys(
    asked: HeadQueries,
    keys: Keys,
    start: Tensor,
    wanted: Tensor,
    *,
    ridge: float,
    steps: int,
    step_size: float,
    seed: int,
) -> Keys:
    """Keys at which the closed-form values leave the least squared error; the first one is held.

    Adam on the keys; at each step the values are those of `fit_values` on the step's queries. The error's gradient does
    not pass through them, nor need it: at the best values its part through them is zero but for the ridge (variable
    projection).

    Args:
        asked: n queries.
        keys: p keys to start from, the attention sink first.
        start: `[p, head_dim]`, values that the fitted ones stay close to.
        wanted: `[n, head_dim]`, attention output to reach.
        ridge: As in `fit_values`.
        steps: How many.
        step_size: Of the first step, as a share of the keys' standard deviation; it falls to zero.
        seed: Decides the queries of each step.
    """
    held, free = keys.keys[:1], keys.keys[1:].clone()
    if not len(free):
        return keys
    rate = step_size * float(free.std(correction=0))
    generator = torch.Generator().manual_seed(seed)
    with torch.enable_grad():
        free.requires_grad_()
        optimizer = torch.optim.Adam([free], lr=rate)
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = rate * (1 - step / steps)
            places = torch.randint(len(asked), (min(_BATCH, len(asked)),), generator=generator).to(free.device)
            part = asked.at(places)
            moved = replace(keys, keys=torch.cat((held, free)))
            with torch.no_grad():
                values = fit_values(part, moved, start, wanted[places], ridge)
            shares, own = moved.weights(part)
            error = shares @ values + own[:, None] * part.own_output - wanted[places]
            optimizer.zero_grad()
            error.square().sum(dim=1).mean().backward()
            optimizer.step()
    return replace(keys, keys=torch.cat((held, free.detach())))
