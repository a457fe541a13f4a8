"""The shards of a study, each a fixed group of samples: whoever makes one loses and repeats no conversation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cartridge_core.benchmarks import Question
from cartridge_core.corpus import Corpus, TokenizedCorpus
from cartridge_core.progress import Progress, no_progress
from cartridge_core.selfstudy.config import SelfStudyConfig
from cartridge_core.selfstudy.question_key import question_key
from cartridge_core.settings import Settings
from cartridge_core.stages.ingest import IngestedCorpus
from cartridge_core.stages.model import description_of, identity_of, model_name, rendering_of
from cartridge_core.stages.steps import Spread, in_order
from cartridge_core.stages.teacher import borrowed_teacher, remote_teacher, teacher_kind

if TYPE_CHECKING:
    from cartridge_core.selfstudy.manifest import DatasetManifest
    from cartridge_core.selfstudy.plan import StudyPlan
    from cartridge_core.teacher.protocol import Teacher

SHARDS_PER_SERVER = 4
"""Shards under way for each server: a chunk's conversations alone leave a large one idle, above all while the last of
them are being written."""


@dataclass(frozen=True)
class StudyShard:
    """Makes the shard of an index, in any process that sees the stores; it can be pickled."""

    settings: Settings
    """Device, default model, teachers."""
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
        with borrowed_teacher(self.settings, self.model) as (teacher, tokenizer):
            self.with_teacher(teacher, tokenizer, shard, progress)

    def with_teacher(self, teacher: Teacher, tokenizer: Any, shard: int, progress: Progress = no_progress) -> None:
        """Make it with a teacher that somebody has borrowed.

        Raises:
            TeacherError: The teacher cannot answer.
        """
        from cartridge_core.selfstudy.synthesize import make_shard

        corpus = _tokenized(self.corpus, model_name(self.settings, self.model))
        make_shard(shard, corpus, teacher, tokenizer, self.plan, self.held_out, self.folder, progress)


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
    plan = StudyPlan.build(
        corpus.digest, identity_of(settings, model), rendering_of(settings, model), config, keys, teacher_kind(settings)
    )
    missing = missing_shards(folder, plan)
    work = StudyShard(settings, corpus.product.directory, plan, keys, model, folder)
    share, before = config.num_conversations / config.num_shards, config.num_shards - len(missing)

    def tell(done: int) -> None:
        progress(round((before + done) * share), config.num_conversations, "self-study")

    if settings.teachers and missing:
        _make_with_servers(work, missing, tell, spread)
    elif spread is None:
        in_order(lambda shard: work(shard, progress), missing, lambda _: None)
    else:
        spread(work, missing, tell)
    return complete(folder, plan, progress)


def _make_with_servers(
    work: StudyShard, missing: Sequence[int], tell: Callable[[int], None], spread: Spread | None
) -> None:
    """The servers are looked at first. Without workers, threads wait for them: most of the time goes by there."""
    from cartridge_core.inference.generate import GenerationConfig

    settings, config = work.settings, work.plan.config
    wanted = GenerationConfig(max_new_tokens=max(config.max_tokens_a, config.max_tokens_b), top_k_logprobs=config.top_k)
    threads = SHARDS_PER_SERVER * len(settings.teachers)
    # The teacher ends before the threads do: closing it wakes those that still wait for an answer.
    with ThreadPoolExecutor(threads) as pool, remote_teacher(settings, work.model) as teacher:
        teacher.check(wanted, config.chunk.max_tokens)
        if spread is not None:
            spread(work, missing, tell)
            return
        tokenizer = description_of(settings, work.model).tokenizer
        _tokenized(work.corpus, model_name(settings, work.model))  # here, or every thread would do it at once
        made = [pool.submit(work.with_teacher, teacher, tokenizer, shard) for shard in missing]
        try:
            for count, shard in enumerate(as_completed(made), 1):
                shard.result()
                tell(count)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


# Of the last corpus only: a worker makes many shards of one study.
@lru_cache(maxsize=1)
def _tokenized(corpus: Path, model: str) -> TokenizedCorpus:
    from cartridge_core.models import load_tokenizer

    return TokenizedCorpus.build(Corpus.load(corpus), load_tokenizer(model))
