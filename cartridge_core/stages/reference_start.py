"""The start that ships for the reference model; learnt through `make reference-start`.

From draws of its world that no sample corpus is, each studied as the quickstart studies: about three quarters of an
hour of one core, most of it training.
"""

from dataclasses import replace

from cartridge_core.benchmarks import load_questions
from cartridge_core.progress import Progress, no_progress
from cartridge_core.reference.samples import SHORT, write_sample
from cartridge_core.settings import Settings
from cartridge_core.stages.ingest import ingest
from cartridge_core.stages.quickstart_plan import SHORT_PLAN
from cartridge_core.stages.start import LearnedStart, learned_start
from cartridge_core.stages.study import study
from cartridge_core.training.start_config import StartConfig

NAMES = tuple(f"start-{number}" for number in range(8))
"""Seeds of the draws."""
CONFIG = StartConfig(num_tokens=SHORT_PLAN.training.num_tokens)


def reference_start(settings: Settings, progress: Progress = no_progress) -> LearnedStart:
    """Draw the corpora, study them and learn the start, or find what of that was done."""
    studies = []
    for name in NAMES:
        folder = write_sample(replace(SHORT, seed=name), settings.home / "samples" / name)
        corpus = ingest(settings, name, [folder / "documents"], progress)
        questions = load_questions(folder / "questions.jsonl")
        studies.append((corpus, study(settings, corpus, SHORT_PLAN.study, questions, SHORT_PLAN.model, progress)))
    return learned_start(settings, studies, CONFIG, SHORT_PLAN.model, progress)
