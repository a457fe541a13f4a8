"""Training rows of the reference model: a corpus in the system message, then many turns about it."""

import random
from dataclasses import dataclass

from cartridge_core.prompts import SYSTEM_TEMPLATE
from cartridge_core.reference.phrasing import Turn, ask_unstated, draw_role_a, draw_turn
from cartridge_core.reference.world import KINDS, Fact, Scale, Split, WorldDocument, generate_corpus, is_held_out
from cartridge_core.selfstudy.seeds import SEED_FAMILIES

FAMILY_WEIGHTS = {
    "question": 0.36,
    "use_case": 0.09,
    "creative": 0.09,
    "structuring": 0.16,
    "summarization": 0.08,
    "unstated": 0.07,
    "role_a": 0.15,
}
VALUE_WEIGHT = 5.0  # a looked-up word counts this much in the loss; the words around it are soon learnt


@dataclass(frozen=True)
class Row:
    """Token ids with the loss weight of each (0: context) and the family that each belongs to (-1: context)."""

    token_ids: list[int]
    weights: list[float]
    families: list[int]


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
        self._families = list(FAMILY_WEIGHTS)

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
        weights = [VALUE_WEIGHT if token in looked_up else 1.0 for token in answer]
        family = self._families.index(turn.family)
        marks = [family + len(self._families) if token in looked_up else family for token in answer]
        return Row(question + answer, [0.0] * len(question) + weights, [-1] * len(question) + marks)

    def row(self, rng: random.Random, scale: Scale, split: Split, turn_tokens: int) -> Row:
        """A corpus of `scale` followed by at least `turn_tokens` tokens of turns."""
        documents = generate_corpus(rng, scale, split)
        token_ids = self.context(documents)
        weights, families = [0.0] * len(token_ids), [-1] * len(token_ids)
        end = len(token_ids) + turn_tokens
        while len(token_ids) < end:
            turn = self.turn(draw(rng, documents, split))
            token_ids += turn.token_ids
            weights += turn.weights
            families += turn.families
        return Row(token_ids, weights, families)


def _unstated(rng: random.Random, documents: tuple[WorldDocument, ...], split: Split) -> Turn:
    fact = rng.choice(rng.choice(documents).facts)
    kind = next(kind for kind in KINDS if fact.attribute in kind.attributes)
    stated = {(f.name, f.attribute) for document in documents for f in document.facts}
    missing = [attribute for attribute in kind.attributes if (fact.name, attribute) not in stated]
    if missing and rng.random() < 0.6:
        return ask_unstated(rng, fact.name, rng.choice(missing))
    names = {name for name, _ in stated}
    while True:
        name = f"{rng.choice(kind.first)} {rng.choice(kind.second)}"
        if name not in names and is_held_out(name) == (split == "held_out"):
            return ask_unstated(rng, name, fact.attribute)


def draw(rng: random.Random, documents: tuple[WorldDocument, ...], split: Split, family: str | None = None) -> Turn:
    """A turn of a family (by default drawn by `FAMILY_WEIGHTS`) about a fact drawn uniformly."""
    family = family or rng.choices(list(FAMILY_WEIGHTS), list(FAMILY_WEIGHTS.values()))[0]
    if family == "unstated":
        return _unstated(rng, documents, split)
    facts: list[Fact] = [fact for document in documents for fact in document.facts]
    fact = rng.choice(facts)
    of_entity = [other for other in facts if other.name == fact.name]
    if family == "role_a":
        return draw_role_a(rng, rng.choice(list(SEED_FAMILIES)), fact, of_entity)
    return draw_turn(rng, family, fact, of_entity)
