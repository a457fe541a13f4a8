"""The initialisers by name."""

from collections.abc import Callable

from cartridge_core.cartridge import PrefixKV
from cartridge_core.initialization.attention_matching import attention_matching
from cartridge_core.initialization.automatic import automatic
from cartridge_core.initialization.first_tokens import first_tokens
from cartridge_core.initialization.given_text import given_text
from cartridge_core.initialization.previous_cartridge import previous_cartridge
from cartridge_core.initialization.random_vectors import random_vectors
from cartridge_core.initialization.sampled_chunks import sampled_chunks
from cartridge_core.initialization.source import InitializationSource

Initializer = Callable[[InitializationSource], PrefixKV]
"""Gives a prefix of `num_tokens` tokens whose `next_position` is `num_tokens`."""

INITIALIZERS: dict[str, Initializer] = {
    "auto": automatic,
    "first_tokens": first_tokens,
    "random_vectors": random_vectors,
    "sampled_chunks": sampled_chunks,
    "text": given_text,
    "cartridge": previous_cartridge,
    "attention_matching": attention_matching,
}
"""Name to initialiser; a new one is a file, a line here and a line in `options.OPTIONS`."""
