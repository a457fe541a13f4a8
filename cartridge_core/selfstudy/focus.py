"""What a seed prompt points at: one sentence of the chunk, so that every part of a corpus is asked about.

Left to choose, an asker comes back to what it finds striking, and a small one mixes things up. Pointing it at evenly
spread sentences makes coverage a matter of arithmetic; the whole chunk stays in its context.
"""

import random
import re

from cartridge_core.selfstudy.seeds import SEED_FAMILIES

FOCUS_TEMPLATE = '{seed_prompt} Ask about this part of the text: "{sentence}"'
"""A seed prompt that points at a sentence."""
FOCUS_RULE = "each distinct sentence once"
"""What may be pointed at. Part of a study's identity: change it with the rule."""

_BOUNDARY = re.compile(r"(?<=[.!?])\s+|\n+")


def sentences(text: str) -> list[str]:
    """Sentences of a text, roughly: cut behind stops and at line breaks; pieces without a letter are left out."""
    return [piece.strip() for piece in _BOUNDARY.split(text) if any(letter.isalpha() for letter in piece)]


def focused_prompt(seed_prompt: str, text: str, position: float, max_words: int) -> str:
    """The seed prompt, pointed at the sentence that stands at a place of the text.

    A sentence that the text repeats word for word counts once, where it first stands: what is repeated is mostly
    boilerplate, of which there is nothing to ask, and repeating a fact does not make it two.

    Args:
        seed_prompt: One of `SEED_FAMILIES`' wordings.
        text: The chunk's text.
        position: Place in [0, 1), 0 for the first sentence.
        max_words: A longer sentence is cut to so many words.

    Returns:
        The pointed prompt, or the seed prompt as it is where the text holds no sentence.
    """
    found = list(dict.fromkeys(sentences(text)))
    if not found:
        return seed_prompt
    words = found[int(position * len(found))].split()
    return FOCUS_TEMPLATE.format(seed_prompt=seed_prompt, sentence=" ".join(words[:max_words]))


def draw_seed_prompt(family: str, seed: int, text: str, position: float, focus_words: int | None) -> str:
    """A wording of a family, drawn by `seed`; pointed at the sentence at `position` unless `focus_words` is None."""
    wordings = SEED_FAMILIES[family]
    wording = wordings[int(random.Random(seed).random() * len(wordings))]
    return wording if focus_words is None else focused_prompt(wording, text, position, focus_words)
