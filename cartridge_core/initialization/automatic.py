"""The default initialisation: the learned start that ships for the base model, or else the corpus's first tokens."""

from cartridge_core.cartridge import Cartridge, PrefixKV
from cartridge_core.initialization.first_tokens import first_tokens
from cartridge_core.initialization.previous_cartridge import continued
from cartridge_core.initialization.shipped_starts import shipped_start
from cartridge_core.initialization.source import InitializationSource
from cartridge_core.rendering import template_digest


def automatic(source: InitializationSource) -> PrefixKV:
    """The shipped start, if there is one for this model and of at most so many tokens; else `first_tokens`.

    The next-token objective begins with the first tokens: it is a baseline, and no study taught it anything.

    Raises:
        TrainingError: The corpus is shorter than the Cartridge.
    """
    base = source.base
    start = shipped_start(base.identity, template_digest(base.tokenizer), source.num_tokens)
    if start is None or source.conversations is None:
        return first_tokens(source)
    return continued(source, Cartridge.load(start))
