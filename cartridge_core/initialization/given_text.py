"""Initialisation from a text of the user's: a summary, a table of contents, or one unrelated to the corpus."""

from cartridge_core.cartridge import PrefixKV
from cartridge_core.initialization.first_tokens import head_of
from cartridge_core.initialization.options import TextOptions
from cartridge_core.initialization.source import InitializationSource


def given_text(source: InitializationSource) -> PrefixKV:
    """Keys and values of the first `num_tokens` tokens of the system message that wraps the given text.

    Raises:
        TrainingError: No text was given, or it is shorter than the Cartridge.
    """
    return head_of(source.base, source.options_for(TextOptions).text, source.num_tokens, "text")
