"""What words are to a look-up: what it goes by, and what it finds."""

from collections.abc import Iterable
from dataclasses import dataclass

from cartridge_core.reference import words


@dataclass(frozen=True)
class WordClasses:
    """Token ids of words that matter to a look-up."""

    names: tuple[int, ...]
    """Halves of names."""
    attributes: tuple[int, ...]
    """What can be said of whoever has a name."""
    values: tuple[int, ...]
    """Words that are looked up."""


def word_classes(tokenizer) -> WordClasses:  # type: ignore[no-untyped-def]
    """Which of the tokenizer's words are names, attributes and values."""

    def ids(listed: Iterable[str]) -> tuple[int, ...]:
        return tuple(tokenizer.convert_tokens_to_ids([f"▁{word}" for word in dict.fromkeys(listed)]))

    names = (*words.FIRST_NAMES, *words.LAST_NAMES, *words.BRANDS, *words.PART_NOUNS)
    values = (value for values in words.VALUES.values() for value in values)
    return WordClasses(names=ids(names), attributes=ids(words.VALUES), values=ids(values))
