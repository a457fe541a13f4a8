"""Training rows of the reference model: a corpus in the system message, then many turns about it."""

import random
import re
from dataclasses import dataclass

from cartridge_core.prompts import SYSTEM_TEMPLATE
from cartridge_core.reference.phrasing import (
    NOT_STATED,
    OTHER_QUESTIONS,
    QUESTIONS,
    Turn,
    ask_question,
    ask_unstated,
    draw_role_a,
    draw_turn,
)
from cartridge_core.reference.words import BRANDS, FIRST_NAMES, LAST_NAMES, PART_NOUNS, VALUES
from cartridge_core.reference.world import KINDS, Fact, Scale, Split, WorldDocument, generate_corpus, is_held_out
from cartridge_core.selfstudy.focus import sentences
from cartridge_core.selfstudy.seeds import SEED_FAMILIES

FAMILY_SHARES = {
    "question": 0.30,
    "use_case": 0.06,
    "creative": 0.06,
    "structuring": 0.18,
    "summarization": 0.15,
    "unstated": 0.07,
    "role_a": 0.18,
}
"""Kinds of turns and the share of each in training."""
FAMILIES = tuple(FAMILY_SHARES)
HEAVY = 5.0  # a word that names something counts this much in the loss; the words around it are soon learnt


@dataclass(frozen=True)
class Row:
    """Token ids with the loss weight of each (0: context) and the family that each belongs to (-1: context)."""

    token_ids: list[int]
    weights: list[float]
    families: list[int]


def content_words() -> list[str]:
    """Every word that names something: names, attributes and values."""
    words = [*FIRST_NAMES, *LAST_NAMES, *BRANDS, *PART_NOUNS, *NOT_STATED.split()]
    for attribute, values in VALUES.items():
        words += [attribute, *values]
    return words


def corpus_text(documents: tuple[WorldDocument, ...]) -> str:
    """Documents as a model sees them, in the form of `Corpus.text`."""
    return "\n\n".join(f"From: {document.title}\n{document.text}" for document in documents)


class RowBuilder:
    """Draws rows and turns them into token ids."""

    def __init__(self, tokenizer) -> None:  # type: ignore[no-untyped-def]
        self._tokenizer = tokenizer
        self._bos, self._system, self._user, self._assistant, self._end = tokenizer.convert_tokens_to_ids(
            ["<s>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
        )
        self._content = set(self._encode(" ".join(content_words())))

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids

    def context(self, documents: tuple[WorldDocument, ...]) -> list[int]:
        """BOS-led system message around the documents."""
        text = SYSTEM_TEMPLATE.format(text=corpus_text(documents))
        return [self._bos, self._system, *self._encode(text), self._end]

    def turn(self, turn: Turn) -> Row:
        """One user turn and its answer."""
        question = [self._user, *self._encode(turn.question), self._end, self._assistant]
        answer = [*self._encode(turn.answer), self._end]
        looked_up = set(self._encode(" ".join(turn.values))) if turn.values else set()
        weights = [HEAVY if token in self._content else 1.0 for token in answer]
        family = FAMILIES.index(turn.family)
        marks = [family + len(FAMILIES) if token in looked_up else family for token in answer]
        return Row(question + answer, [0.0] * len(question) + weights, [-1] * len(question) + marks)

    def row(self, rng: random.Random, scale: Scale, split: Split, turn_tokens: int) -> Row:
        """A corpus of `scale` followed by at least `turn_tokens` tokens of turns."""
        documents = generate_corpus(rng, scale, split)
        token_ids = self.context(documents)
        weights, families = [0.0] * len(token_ids), [-1] * len(token_ids)
        end = len(token_ids) + turn_tokens
        while len(token_ids) < end:
            family = rng.choices(tuple(FAMILY_SHARES), tuple(FAMILY_SHARES.values()))[0]
            turn = self.turn(draw(rng, documents, split, family, (*QUESTIONS, *OTHER_QUESTIONS)))
            token_ids += turn.token_ids
            weights += turn.weights
            families += turn.families
        return Row(token_ids, weights, families)


def _unstated(
    rng: random.Random, documents: tuple[WorldDocument, ...], split: Split, wordings: tuple[str, ...]
) -> Turn:
    fact = rng.choice(rng.choice(documents).facts)
    kind = next(kind for kind in KINDS if fact.attribute in kind.attributes)
    stated = {(f.name, f.attribute) for document in documents for f in document.facts}
    missing = [attribute for attribute in kind.attributes if (fact.name, attribute) not in stated]
    if missing and rng.random() < 0.6:
        return ask_unstated(rng, fact.name, rng.choice(missing), wordings)
    names = {name for name, _ in stated}
    while True:
        name = f"{rng.choice(kind.first)} {rng.choice(kind.second)}"
        if name not in names and is_held_out(name) == (split == "held_out"):
            return ask_unstated(rng, name, fact.attribute, wordings)


def _role_a(rng: random.Random, documents: tuple[WorldDocument, ...]) -> Turn:
    """Role A pointed at a sentence: about a fact that it states, else the first one of whom it names, else the first
    one of all. A small model cannot pick one of many by chance: it would mix them up."""
    document = rng.choice(documents)
    sentence = rng.choice(sentences(document.text))
    words = set(re.findall(r"\w+", sentence))
    named = [fact for fact in document.facts if fact.name in sentence]
    stated = [fact for fact in named if {fact.attribute, fact.value} <= words]
    about = document if named else documents[0]
    fact = rng.choice(stated) if stated else (named or about.facts)[0]
    of_entity = [other for other in about.facts if other.name == fact.name]
    return draw_role_a(rng, rng.choice(list(SEED_FAMILIES)), sentence, fact, of_entity)


def draw(
    rng: random.Random,
    documents: tuple[WorldDocument, ...],
    split: Split,
    family: str,
    wordings: tuple[str, ...] = QUESTIONS,
) -> Turn:
    """A turn of a family about a fact drawn uniformly."""
    if family == "unstated":
        return _unstated(rng, documents, split, wordings)
    if family == "role_a":
        return _role_a(rng, documents)
    facts: list[Fact] = [fact for document in documents for fact in document.facts]
    fact = rng.choice(facts)
    of_entity = [other for other in facts if other.name == fact.name]
    if family == "question":
        return ask_question(rng, fact, wordings)
    return draw_turn(rng, family, fact, of_entity)
