"""What people ask about the reference world and how it is answered: the language that the reference model speaks."""

import json
import random
from dataclasses import dataclass

from cartridge_core.reference.world import Fact
from cartridge_core.selfstudy.focus import FOCUS_TEMPLATE
from cartridge_core.selfstudy.seeds import SEED_FAMILIES

QUESTIONS = (
    "What is the {attribute} of {name}?",
    "Which {attribute} does {name} have?",
    "Tell me the {attribute} of {name}.",
    "I need to know the {attribute} of {name}.",
)
OTHER_QUESTIONS = (
    "Please tell me the {attribute} of {name}.",
    "Which is the {attribute} of {name}?",
    "I am asking about the {attribute} of {name}.",
)
"""Wordings that the model answers but never asks as role A: questions in them are new to every self-study."""
USE_CASES = (
    "I am filling in a form for {name}. What is the {attribute} of {name}?",
    "A colleague asks about the {attribute} of {name}. What should I say?",
    "Before I call, remind me of the {attribute} of {name}.",
)
CREATIVE = (
    (
        "Write a postcard about the {attribute} of {name}.",
        "Greetings! The {attribute} of {name} is {value}. See you soon.",
    ),
    ("Write a line of a song about the {attribute} of {name}.", "La la la, the {attribute} of {name} is {value}."),
    ("Write a diary entry about the {attribute} of {name}.", "Dear diary, the {attribute} of {name} is {value}."),
)
SUMMARIES = (
    "Summarize what the text says about {name}.",
    "Give me everything that is known about {name}.",
    "Write a short overview of {name}.",
)
WHOLE_JSON = ("Give {name} as JSON.", "Write everything about {name} as JSON.")
PARTIAL_JSON = ("Give the {attributes} of {name} as JSON.", "Write the {attributes} of {name} as JSON.")
ANSWER = "The {attribute} of {name} is {value}."
NOT_STATED = "not stated"


@dataclass(frozen=True)
class Turn:
    """A user message and its answer. `values` are the answer's words that had to be looked up."""

    family: str
    question: str
    answer: str
    values: tuple[str, ...] = ()


def _answer(fact: Fact, template: str = ANSWER) -> str:
    return template.format(attribute=fact.attribute, name=fact.name, value=fact.value)


def ask_question(rng: random.Random, fact: Fact, wordings: tuple[str, ...] = QUESTIONS) -> Turn:
    """A plain question about one fact."""
    question = rng.choice(wordings).format(attribute=fact.attribute, name=fact.name)
    return Turn("question", question, _answer(fact), (fact.value,))


def ask_use_case(rng: random.Random, fact: Fact) -> Turn:
    """A question somebody asks who has a task to do."""
    question = rng.choice(USE_CASES).format(attribute=fact.attribute, name=fact.name)
    return Turn("use_case", question, _answer(fact), (fact.value,))


def ask_creative(rng: random.Random, fact: Fact) -> Turn:
    """A small piece of writing that holds one fact."""
    request, reply = rng.choice(CREATIVE)
    return Turn(
        "creative", request.format(attribute=fact.attribute, name=fact.name), _answer(fact, reply), (fact.value,)
    )


def ask_summary(rng: random.Random, facts: list[Fact]) -> Turn:
    """All that is said of one entity, in the order of the text."""
    answer = " ".join(_answer(fact) for fact in facts)
    return Turn(
        "summarization", rng.choice(SUMMARIES).format(name=facts[0].name), answer, tuple(f.value for f in facts)
    )


def _enumerate(words: list[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


def ask_json(rng: random.Random, facts: list[Fact]) -> Turn:
    """One entity as JSON: all that is said of it, or up to three named attributes."""
    name = facts[0].name
    if rng.random() < 0.3:
        request = rng.choice(WHOLE_JSON).format(name=name)
    else:
        facts = rng.sample(facts, rng.randint(1, min(3, len(facts))))
        request = rng.choice(PARTIAL_JSON).format(attributes=_enumerate([f.attribute for f in facts]), name=name)
    answer = json.dumps({"name": name} | {f.attribute: f.value for f in facts})
    return Turn("structuring", request, answer, tuple(f.value for f in facts))


def ask_unstated(rng: random.Random, name: str, attribute: str, wordings: tuple[str, ...] = QUESTIONS) -> Turn:
    """A question that the text does not answer."""
    turn = ask_question(rng, Fact(name, attribute, NOT_STATED), wordings)
    return Turn("unstated", turn.question, turn.answer, tuple(NOT_STATED.split()))


def draw_turn(rng: random.Random, family: str, fact: Fact, facts_of_entity: list[Fact]) -> Turn:
    """A turn of one of the five self-study families about `fact` or its entity."""
    if family == "question":
        return ask_question(rng, fact)
    if family == "use_case":
        return ask_use_case(rng, fact)
    if family == "creative":
        return ask_creative(rng, fact)
    if family == "summarization":
        return ask_summary(rng, facts_of_entity)
    return ask_json(rng, facts_of_entity)


def draw_role_a(rng: random.Random, family: str, sentence: str, fact: Fact, facts_of_entity: list[Fact]) -> Turn:
    """Role A of self-study, pointed at a sentence that states `fact`, or names its entity, or neither.

    The seed prompt is the user message, the family's question is the reply.
    """
    if family == "structuring" and rng.random() < 0.5:
        question = rng.choice(PARTIAL_JSON).format(attributes=fact.attribute, name=fact.name)
    elif family == "structuring":
        question = rng.choice(WHOLE_JSON).format(name=fact.name)
    else:
        question = draw_turn(rng, family, fact, facts_of_entity).question
    seed_prompt = rng.choice(SEED_FAMILIES[family])
    return Turn("role_a", FOCUS_TEMPLATE.format(seed_prompt=seed_prompt, sentence=sentence), question)
