"""The sample corpora: documents of the reference world with names that the reference model has never seen.

The short one is shipped as files under `sample/`; the long one, twice the model's window, is written on demand.
"""

import random
from dataclasses import dataclass
from pathlib import Path

from cartridge_core.benchmarks import Question, save_questions
from cartridge_core.reference.phrasing import OTHER_QUESTIONS
from cartridge_core.reference.words import VALUES
from cartridge_core.reference.world import Scale, WorldDocument, generate_corpus

SAMPLE_PATH = Path(__file__).parent / "sample"
"""Folder of the shipped corpus: `documents/*.md` and `questions.jsonl`."""


@dataclass(frozen=True)
class Sample:
    """Which corpus to draw and how many questions to ask about it."""

    seed: str
    scale: Scale
    num_questions: int


SHORT = Sample("sample", Scale(51, 5, documents=3), 240)
LONG = Sample("long sample", Scale(140, 5, documents=9), 300)


def draw_sample(sample: Sample) -> tuple[tuple[WorldDocument, ...], tuple[Question, ...]]:
    """Documents and questions of a sample; questions are uniform over its facts, none asked twice."""
    rng = random.Random(sample.seed)
    documents = generate_corpus(rng, sample.scale, "held_out", distinct=True)
    facts = [fact for document in documents for fact in document.facts]
    chosen = rng.sample(facts, min(sample.num_questions, len(facts)))
    questions = tuple(
        Question(
            id=f"fact-{index:03d}",
            question=rng.choice(OTHER_QUESTIONS).format(attribute=fact.attribute, name=fact.name),
            answer=fact.value,
            distractors=tuple(value for value in VALUES[fact.attribute] if value != fact.value),
            metadata={"attribute": fact.attribute, "name": fact.name},
        )
        for index, fact in enumerate(chosen)
    )
    return documents, questions


def write_sample(sample: Sample, folder: Path) -> Path:
    """Write `documents/*.md` and `questions.jsonl` into a folder, and return it."""
    documents, questions = draw_sample(sample)
    (folder / "documents").mkdir(parents=True, exist_ok=True)
    for document in documents:
        name = document.title.lower().replace(" ", "-")
        (folder / "documents" / f"{name}.md").write_text(f"# {document.title}\n\n{document.text}\n", encoding="utf-8")
    save_questions(folder / "questions.jsonl", questions)
    return folder
