"""What the reference model can do, measured on corpora and names it has never seen."""

import json
import random
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from cartridge_core.benchmarks import Question
from cartridge_core.benchmarks.closed_answer import score
from cartridge_core.benchmarks.interval import wilson
from cartridge_core.cartridge import PrefixKV
from cartridge_core.inference.generate import GenerationConfig, generate
from cartridge_core.inference.prefix import prefill
from cartridge_core.models import BaseModel
from cartridge_core.progress import Progress, no_progress
from cartridge_core.reference.examples import corpus_text, draw
from cartridge_core.reference.phrasing import NOT_STATED, Turn
from cartridge_core.reference.words import VALUES
from cartridge_core.reference.world import KINDS, Scale, WorldDocument, generate_corpus
from cartridge_core.rendering import bare_prefix_token_ids, prefix_token_ids, render_turns
from cartridge_core.selfstudy.config import SelfStudyConfig
from cartridge_core.selfstudy.focus import draw_seed_prompt
from cartridge_core.selfstudy.seeds import SEED_FAMILIES

SCALES = {"1.5k tokens": Scale(20, 7, documents=2), "3k tokens": Scale(40, 7, documents=3)}
GUESSING = sum(1 / len(VALUES[attribute]) for kind in KINDS for attribute in kind.attributes) / len(VALUES)
"""Mean chance of guessing a value of the asked attribute."""


@dataclass(frozen=True)
class Ability:
    """One row of the table: a share with its 95% interval, and what is asked of it."""

    name: str
    share: float
    low: float
    high: float
    n: int
    at_least: float | None = None
    at_most: float | None = None

    @property
    def ok(self) -> bool:
        """Whether the share is within what is asked."""
        above = self.at_least is None or self.share >= self.at_least
        return above and (self.at_most is None or self.share <= self.at_most)

    def record(self) -> dict[str, object]:
        """The row as plain values."""
        return asdict(self) | {"ok": self.ok}


def _ability(name: str, hits: Sequence[bool], at_least: float | None = None, at_most: float | None = None) -> Ability:
    interval = wilson([float(hit) for hit in hits])
    return Ability(name, sum(hits) / len(hits), interval.low, interval.high, len(hits), at_least, at_most)


class _Reader:
    """A model with one corpus in its context."""

    def __init__(self, base: BaseModel, documents: tuple[WorldDocument, ...], seed: str) -> None:
        self.base = base
        self.documents = documents
        self.rng = random.Random(seed)
        self.prefix = prefill(base, prefix_token_ids(base.tokenizer, corpus_text(documents)))
        self.facts = {(fact.name, fact.attribute): fact.value for document in documents for fact in document.facts}

    def turns(self, family: str, count: int) -> list[Turn]:
        return [draw(self.rng, self.documents, "held_out", family) for _ in range(count)]

    def seeds(self, count: int) -> list[str]:
        """Seed prompts as self-study makes them, families taking turns."""
        families, words = list(SEED_FAMILIES), SelfStudyConfig().focus_words
        return [
            draw_seed_prompt(
                families[i % len(families)], i, self.rng.choice(self.documents).text, self.rng.random(), words
            )
            for i in range(count)
        ]

    def replies(self, questions: Sequence[str], temperature: float = 0.0, prefix: PrefixKV | None = None) -> list[str]:
        prompts = [
            render_turns(self.base.tokenizer, [{"role": "user", "content": question}], True).token_ids
            for question in questions
        ]
        config = GenerationConfig(max_new_tokens=128, temperature=temperature)
        return [g.text for g in generate(self.base, prefix or self.prefix, prompts, config)]

    def right(self, turns: Sequence[Turn], prefix: PrefixKV | None = None) -> list[bool]:
        """Whether each reply holds the gold value and no other value of that attribute."""
        replies = self.replies([turn.question for turn in turns], prefix=prefix)
        return [bool(score(_closed(turn), reply).score) for turn, reply in zip(turns, replies, strict=True)]

    def answerable(self, question: str) -> bool:
        """Whether the text holds what a question of role A asks for."""
        words = re.findall(r"\w+", question)
        names = {name for name, _ in self.facts if name in question}
        asked = {attribute for attribute in VALUES if attribute in words}
        return len(names) == 1 and all((name, attribute) in self.facts for name in names for attribute in asked)


def _closed(turn: Turn) -> Question:
    attribute = next(a for a in VALUES if re.search(rf"\b{a}\b", turn.question))
    return Question(id="turn", question=turn.question, answer=turn.values[0], distractors=VALUES[attribute])


def _json_right(turn: Turn, reply: str) -> tuple[bool, bool]:
    try:
        parsed = json.loads(reply)
    except json.JSONDecodeError:
        return False, False
    return isinstance(parsed, dict), parsed == json.loads(turn.answer)


def _sentences(text: str) -> set[str]:
    return set(re.findall(r"[^.]+\.", text.replace(". ", ".")))


def evaluate_reference(
    base: BaseModel, corpora: int = 8, questions: int = 50, seed: int = 0, progress: Progress = no_progress
) -> list[Ability]:
    """The table of abilities.

    Args:
        base: The model.
        corpora: Corpora of each size.
        questions: Questions of each kind about each corpus.
        seed: Worlds of this number; training never draws them, and their names are held out.
        progress: Told about corpora.
    """
    answers: dict[str, list[bool]] = {name: [] for name in SCALES}
    blind: list[bool] = []
    unstated, parsed, exact, recalled, invented, asked = [], [], [], [], [], []
    bare = bare_prefix_token_ids(base.tokenizer)
    nothing = prefill(base, bare) if bare else None
    study = SelfStudyConfig()
    for size, scale in SCALES.items():
        for index in range(corpora):
            name = f"reference-evaluation/{seed}/{size}/{index}"
            reader = _Reader(base, generate_corpus(random.Random(name), scale, "held_out"), name)
            turns = reader.turns("question", questions)
            answers[size] += reader.right(turns)
            progress(list(SCALES).index(size) * corpora + index + 1, corpora * len(SCALES), "corpora")
            if size != next(iter(SCALES)):
                continue
            blind += reader.right(turns, nothing)
            few = max(1, questions // 2)
            missing = reader.turns("unstated", few)
            unstated += [NOT_STATED in reply for reply in reader.replies([turn.question for turn in missing])]
            structured = reader.turns("structuring", few)
            for turn, reply in zip(structured, reader.replies([t.question for t in structured]), strict=True):
                good, same = _json_right(turn, reply)
                parsed.append(good)
                exact.append(same)
            summaries = reader.turns("summarization", few)
            for turn, reply in zip(summaries, reader.replies([t.question for t in summaries]), strict=True):
                gold, said = _sentences(turn.answer), _sentences(reply)
                recalled += [sentence in said for sentence in gold]
                invented += [sentence not in gold for sentence in said]
            replies = reader.replies(reader.seeds(questions), study.temperature_a)
            asked += [reader.answerable(question) for question in replies]
    return [
        _ability("right with the corpus in context, 1.5k tokens", answers["1.5k tokens"], at_least=0.95),
        _ability("right with the corpus in context, 3k tokens", answers["3k tokens"], at_least=0.90),
        _ability("right without the corpus", blind, at_most=round(GUESSING + 0.05, 4)),
        _ability("JSON that parses", parsed, at_least=0.95),
        _ability("JSON equal to the gold JSON", exact),
        _ability("questions of role A that the text answers", asked, at_least=0.90),
        _ability("facts of an entity that its summary states", recalled),
        _ability("sentences of a summary that the text does not hold", invented),
        _ability("unstated facts reported as not stated", unstated),
    ]
