"""Initialisation from random vectors, the weakest in the paper (arXiv 2506.06266, section 5.3): for comparisons."""

import torch
from torch import Tensor

from cartridge_core.cartridge import PrefixKV
from cartridge_core.initialization.first_tokens import first_tokens
from cartridge_core.initialization.source import InitializationSource


def random_vectors(source: InitializationSource) -> PrefixKV:
    """Normal vectors with the mean and spread that each channel has over the beginning of the corpus.

    The first token stays the real one: a Cartridge without an attention sink starts from a broken model, which says
    nothing about initialisation. Unit normals, as in the reference implementation, are far off the scale of real keys.

    Raises:
        TrainingError: The corpus is shorter than the Cartridge.
    """
    real = first_tokens(source)
    generator = torch.Generator().manual_seed(source.seed)
    return PrefixKV(
        [None if key is None else _like(key, generator) for key in real.keys],
        [None if value is None else _like(value, generator) for value in real.values],
        real.next_position,
    )


def _like(real: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.randn(real.shape, generator=generator).to(real)
    # Without the first token, whose keys are outliers, and biased, so that one token has spread 0 and not NaN.
    rest = real[:, 1:] if real.shape[1] > 1 else real
    vectors = rest.mean(dim=1, keepdim=True) + noise * rest.std(dim=1, keepdim=True, correction=0)
    return torch.cat((real[:, :1], vectors[:, 1:]), dim=1)
