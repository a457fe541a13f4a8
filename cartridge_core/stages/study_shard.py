"""The shards of a study, each a fixed group of samples: whoever makes one loses and repeats no conversation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from cartridge_core.benchmarks import Question
from cartridge_core.corpus import Corpus, TokenizedCorpus
from cartridge_core.progress import Progress, no_progress
from cartridge_core.selfstudy.config import SelfStudyConfig
from cartridge_core.selfstudy.question_key import question_key
from cartridge_core.settings import Settings
from cartridge_core.stages.ingest import IngestedCorpus
from cartridge_core.stages.model import borrowed_model, identity_of, model_name, rendering_of
from cartridge_core.stages.steps import Spread, in_order

if TYPE_CHECKING:
    from cartridge_core.selfstudy.manifest import DatasetManifest
    from cartridge_core.selfstudy.plan import StudyPlan


@dataclass(frozen=True)
class StudyShard:
    """Makes the shard of an index, in any process that sees the stores; it can be pickled."""

    settings: Settings
    """Device, default model."""
    corpus: Path
    """Folder of the corpus."""
    plan: StudyPlan
    """Of the study."""
    held_out: frozenset[str]
    """Keys of questions that must not be learnt."""
    model: str | None
    """Hub id or folder; None for the settings' own."""
    folder: Path
    """Of the study."""

    def __call__(self, shard: int, progress: Progress = no_progress) -> None:
        """Make it.

        Raises:
            TeacherError: The teacher cannot answer.
        """
        from cartridge_core.selfstudy.synthesize import make_shard
        from cartridge_core.teacher.local import LocalTeacher

        corpus = _tokenized(self.corpus, model_name(self.settings, self.model))
        with borrowed_model(self.settings, self.model) as base:
            make_shard(
                shard, corpus, LocalTeacher(base), base.tokenizer, self.plan, self.held_out, self.folder, progress
            )


def study_shards(
    settings: Settings,
    corpus: IngestedCorpus,
    config: SelfStudyConfig,
    held_out: Sequence[Question],
    model: str | None,
    folder: Path,
    progress: Progress = no_progress,
    spread: Spread | None = None,
) -> DatasetManifest:
    """Make what is missing of a study; its arguments are those of `stages.study`, and the folder.

    Raises:
        DatasetError: The folder holds another study, or every conversation was dropped.
        TeacherError: The teacher cannot answer. What is finished stays; calling again resumes.
    """
    from cartridge_core.selfstudy.plan import StudyPlan
    from cartridge_core.selfstudy.synthesize import complete, missing_shards

    keys = frozenset(question_key(question.question) for question in held_out)
    plan = StudyPlan.build(corpus.digest, identity_of(settings, model), rendering_of(settings, model), config, keys)
    missing = missing_shards(folder, plan)
    work = StudyShard(settings, corpus.product.directory, plan, keys, model, folder)
    if spread is None:
        in_order(lambda shard: work(shard, progress), missing, lambda _: None)
    else:
        share, before = config.num_conversations / config.num_shards, config.num_shards - len(missing)
        spread(
            work, missing, lambda done: progress(round((before + done) * share), config.num_conversations, "self-study")
        )
    return complete(folder, plan, progress)


# Of the last corpus only: a worker makes many shards of one study.
@lru_cache(maxsize=1)
def _tokenized(corpus: Path, model: str) -> TokenizedCorpus:
    from cartridge_core.models import load_tokenizer

    return TokenizedCorpus.build(Corpus.load(corpus), load_tokenizer(model))
