"""The reference world: procedurally generated documents about fictitious patients, employees and parts.

Deterministic given a `random.Random`. Names of the held-out split are combinations of known tokens that the training
split never draws, so that a model evaluated on them has to read and cannot remember.
"""

import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from cartridge_core.reference.words import BRANDS, FIRST_NAMES, LAST_NAMES, PART_NOUNS, VALUES

WORLD_VERSION = "1"
Split = Literal["train", "held_out"]
_HELD_OUT_SHARE = 5  # one name in five belongs to the held-out split

FACT_PHRASINGS = (
    "The {attribute} of {name} is {value}.",
    "For {name} the {attribute} is {value}.",
    "{name} has the {attribute} {value}.",
    "Note the {attribute} of {name}: {value}.",
)


@dataclass(frozen=True)
class Kind:
    """A kind of document: what it is called, whom it is about and what it says of them."""

    title: str
    first: tuple[str, ...]
    second: tuple[str, ...]
    attributes: tuple[str, ...]
    introductions: tuple[str, ...]


KINDS = (
    Kind(
        "Clinic records",
        FIRST_NAMES,
        LAST_NAMES,
        ("ward", "allergy", "diagnosis", "medication", "dosage", "physician", "insurer", "diet"),
        (
            "{name} came to the clinic this year and the file was checked by the desk.",
            "The file about {name} was opened again after the last visit to the clinic.",
            "{name} was seen at the clinic and all entries below were confirmed.",
        ),
    ),
    Kind(
        "Staff handbook",
        FIRST_NAMES,
        LAST_NAMES,
        ("department", "office", "manager", "shift", "language", "badge", "city", "hobby"),
        (
            "{name} joined the company some time ago and is listed in this handbook.",
            "The page about {name} was written after a talk with the whole team.",
            "{name} works for the company and agreed to the entries below.",
        ),
    ),
    Kind(
        "Parts catalogue",
        BRANDS,
        PART_NOUNS,
        ("material", "supplier", "weight", "shelf", "color", "price", "warranty", "origin"),
        (
            "{name} is kept in the main store and was counted again this month.",
            "The entry about {name} was compared with the order that came last.",
            "{name} can be ordered at any time and is described below.",
        ),
    ),
)

FILLERS = (
    "All entries were read twice by the same clerk.",
    "The desk keeps a copy of every page.",
    "Nothing else was added on this day.",
    "Please report any mistake at once.",
    "The next review is planned for the end of the year.",
    "This page is open to all who need it.",
)


@dataclass(frozen=True)
class Fact:
    """One thing that a corpus says: `name` has `value` as its `attribute`."""

    name: str
    attribute: str
    value: str


@dataclass(frozen=True)
class WorldDocument:
    """A generated document: its title, its text and the facts it states, in the order of the text."""

    title: str
    text: str
    facts: tuple[Fact, ...]


@dataclass(frozen=True)
class Scale:
    """How much a corpus says.

    The optional numbers limit how many different words a document uses (None: all of its kind). Few name words make
    namesakes, whom only the other half of the name tells apart.
    """

    entities: int
    facts_per_entity: int
    attributes: int | None = None
    filler: bool = True
    documents: int = 1
    first_names: int | None = None
    second_names: int | None = None


def is_held_out(name: str) -> bool:
    """Whether a name belongs to the split that training never sees."""
    return zlib.crc32(name.encode()) % _HELD_OUT_SHARE == 0


def _names(rng: random.Random, kind: Kind, count: int, split: Split, taken: set[str]) -> Iterator[str]:
    end = len(taken) + count
    while len(taken) < end:
        name = f"{rng.choice(kind.first)} {rng.choice(kind.second)}"
        if name not in taken and is_held_out(name) == (split == "held_out"):
            taken.add(name)
            yield name


def _state(rng: random.Random, fact: Fact) -> str:
    return rng.choice(FACT_PHRASINGS).format(name=fact.name, attribute=fact.attribute, value=fact.value)


def _records(rng: random.Random, kind: Kind, by_entity: list[list[Fact]], filler: bool) -> tuple[str, list[Fact]]:
    """A paragraph an entity."""
    lines = []
    for facts in by_entity:
        sentences = [_state(rng, fact) for fact in facts]
        if filler:
            sentences.insert(0, rng.choice(kind.introductions).format(name=facts[0].name))
            if rng.random() < 0.5:
                sentences.append(rng.choice(FILLERS))
        lines.append(" ".join(sentences))
    return "\n".join(lines), [fact for facts in by_entity for fact in facts]


def _journal(rng: random.Random, by_entity: list[list[Fact]], filler: bool) -> tuple[str, list[Fact]]:
    """A line a fact, entities mixed."""
    facts = [fact for facts in by_entity for fact in facts]
    rng.shuffle(facts)
    lines = []
    for fact in facts:
        lines.append(_state(rng, fact))
        if filler and rng.random() < 0.2:
            lines.append(rng.choice(FILLERS))
    return "\n".join(lines), facts


def generate_document(
    rng: random.Random, kind: Kind, scale: Scale, split: Split, title: str, taken: set[str]
) -> WorldDocument:
    """Draw one document.

    Args:
        rng: The only source of chance.
        kind: What it is about.
        scale: `entities` names with `facts_per_entity` facts each.
        split: Which names may be used.
        title: Title to give it.
        taken: Names that are in use; the document's own join them.
    """
    attributes = list(kind.attributes)
    if scale.attributes is not None:
        attributes = rng.sample(attributes, scale.attributes)
    if scale.first_names is not None:
        kind = replace(kind, first=tuple(rng.sample(kind.first, scale.first_names)))
    if scale.second_names is not None:
        kind = replace(kind, second=tuple(rng.sample(kind.second, scale.second_names)))
    by_entity = []
    for name in _names(rng, kind, scale.entities, split, taken):
        stated = rng.sample(attributes, min(scale.facts_per_entity, len(attributes)))
        by_entity.append([Fact(name, attribute, rng.choice(VALUES[attribute])) for attribute in stated])
    if rng.random() < 0.3:
        text, facts = _journal(rng, by_entity, scale.filler)
    else:
        text, facts = _records(rng, kind, by_entity, scale.filler)
    return WorldDocument(title, text, tuple(facts))


def generate_corpus(
    rng: random.Random, scale: Scale, split: Split, distinct: bool = False
) -> tuple[WorldDocument, ...]:
    """Draw `scale.documents` documents, kinds taking turns from a random start; entities are shared out among them.

    Several documents of one kind may contradict each other about a name unless names are `distinct` in the corpus.
    """
    names: set[str] = set()
    first = rng.randrange(len(KINDS))
    documents = []
    for index in range(scale.documents):
        kind = KINDS[(first + index) % len(KINDS)]
        entities = scale.entities // scale.documents + (index < scale.entities % scale.documents)
        part = replace(scale, entities=entities, documents=1)
        title = kind.title if scale.documents <= len(KINDS) else f"{kind.title} {10 + index}"
        documents.append(generate_document(rng, kind, part, split, title, names if distinct else set()))
    return tuple(documents)
