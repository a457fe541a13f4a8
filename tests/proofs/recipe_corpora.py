"""The corpora that recipes are compared on: three draws of the reference world, each with its study and questions."""

from dataclasses import dataclass, replace

import numpy as np

from cartridge_core.benchmarks import Question, load_questions
from cartridge_core.corpus import Corpus
from cartridge_core.dataset import ConversationDataset
from cartridge_core.progress import Progress, no_progress
from cartridge_core.reference.samples import SHORT, write_sample
from cartridge_core.selfstudy.question_key import question_key
from cartridge_core.settings import Settings
from cartridge_core.stages.ingest import ingest
from cartridge_core.stages.quickstart_plan import SHORT_PLAN
from cartridge_core.stages.study import study

NAMES = ("sample", "sample-b", "sample-c")
"""Seeds of the draws; the first one is the shipped sample's."""


@dataclass(frozen=True)
class RecipeCorpus:
    """A corpus, what there is to learn about it, and what it is examined in."""

    name: str
    corpus: Corpus
    conversations: ConversationDataset
    exam: ConversationDataset
    """A second study, with another seed."""
    questions: tuple[Question, ...]

    def unseen(self, trained_on: ConversationDataset) -> ConversationDataset:
        """The exam less the questions that were trained on: ten times the questions that a run itself holds out.

        Those are some eighty, and a few of them make most of a divergence (docs/training.md).
        """
        seen = {question_key(question) for question in trained_on.questions()}
        return self.exam.select(np.flatnonzero([question_key(text) not in seen for text in self.exam.questions()]))


def recipe_corpus(settings: Settings, name: str, progress: Progress = no_progress) -> RecipeCorpus:
    """Draw a corpus and study it as the quickstart does, or find that this was done."""
    folder = write_sample(replace(SHORT, seed=name), settings.home / "samples" / name)
    questions = load_questions(folder / "questions.jsonl")
    corpus = ingest(settings, name, [folder / "documents"], progress)
    studies = [
        study(
            settings, corpus, SHORT_PLAN.study.model_copy(update={"seed": seed}), questions, SHORT_PLAN.model, progress
        )
        for seed in (SHORT_PLAN.study.seed, SHORT_PLAN.study.seed + 1)
    ]
    dataset, exam = (product.load() for product in studies)
    return RecipeCorpus(name, corpus.load(), dataset, exam, questions)
