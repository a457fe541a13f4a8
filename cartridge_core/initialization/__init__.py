"""Where a Cartridge's keys and values start before training."""

from collections.abc import Callable

from cartridge_core.cartridge import PrefixKV
from cartridge_core.initialization.first_tokens import first_tokens
from cartridge_core.initialization.random_vectors import random_vectors
from cartridge_core.models import BaseModel

Initializer = Callable[[BaseModel, str, int, int], PrefixKV]
"""Called with (base model, corpus text, number of tokens, seed)."""

INITIALIZERS: dict[str, Initializer] = {
    "first_tokens": first_tokens,
    "random_vectors": random_vectors,
}
"""Name to initialiser; a new one is a file and a line here."""

__all__ = ["INITIALIZERS", "Initializer", "first_tokens", "random_vectors"]
