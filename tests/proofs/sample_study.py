"""The quickstart's study of the shipped sample corpus: made once, found afterwards."""

from dataclasses import dataclass

from cartridge_core.benchmarks import load_questions
from cartridge_core.corpus import Corpus
from cartridge_core.dataset import ConversationDataset
from cartridge_core.progress import Progress, no_progress
from cartridge_core.settings import Settings
from cartridge_core.stages.ingest import ingest
from cartridge_core.stages.quickstart import sample_folder
from cartridge_core.stages.quickstart_plan import SHORT_PLAN
from cartridge_core.stages.study import study


@dataclass(frozen=True)
class SampleStudy:
    """A corpus and the conversations about it."""

    corpus: Corpus
    conversations: ConversationDataset


def sample_study(settings: Settings, progress: Progress = no_progress) -> SampleStudy:
    """The stages of `cartridge quickstart` up to its study, in the settings' own store."""
    folder = sample_folder(settings, SHORT_PLAN)
    corpus = ingest(settings, SHORT_PLAN.target, [folder / "documents"], progress)
    questions = load_questions(folder / "questions.jsonl")
    dataset = study(settings, corpus, SHORT_PLAN.study, questions, SHORT_PLAN.model, progress)
    return SampleStudy(corpus.load(), dataset.load())
