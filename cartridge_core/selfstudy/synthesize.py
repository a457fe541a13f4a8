"""Self-study: a corpus becomes conversations with the teacher's distributions (arXiv 2506.06266, section 4)."""

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from cartridge_core.corpus.corpus import Corpus
from cartridge_core.corpus.tokenized import TokenizedCorpus
from cartridge_core.errors import DatasetError
from cartridge_core.progress import Progress, no_progress
from cartridge_core.rendering import template_digest
from cartridge_core.selfstudy.chunk_study import draw_chunk, study_chunk
from cartridge_core.selfstudy.config import SelfStudyConfig
from cartridge_core.selfstudy.conversation import Sample
from cartridge_core.selfstudy.manifest import MANIFEST_FILE, DatasetManifest
from cartridge_core.selfstudy.plan import StudyPlan
from cartridge_core.selfstudy.question_key import question_key
from cartridge_core.selfstudy.shard import read_summary, shard_file, write_shard
from cartridge_core.teacher.protocol import Teacher


def synthesize(
    corpus: Corpus,
    teacher: Teacher,
    tokenizer: Any,
    config: SelfStudyConfig,
    folder: Path,
    progress: Progress = no_progress,
    held_out_questions: Iterable[str] = (),
) -> DatasetManifest:
    """Make the conversations of a study, or the ones that a killed run left to be made.

    The folder holds `plan.json` from the start, then one parquet shard after the other, and `manifest.json` when it is
    complete. A shard appears whole or not at all and depends on the plan alone, so a resumed study ends with the bytes
    of an uninterrupted one. Called on a complete dataset it makes nothing and returns the manifest.

    Args:
        corpus: What to study.
        teacher: Plays both roles.
        tokenizer: The base model's.
        config: How to study.
        folder: Where the dataset is or will be.
        progress: Told about samples, dropped ones included.
        held_out_questions: Questions that must not be learnt, because an evaluation will ask them. A sample whose
            question is one of them (whatever its case and punctuation) is dropped and counted.

    Raises:
        DatasetError: The folder holds another study, or every conversation was dropped.
        TeacherError: The teacher cannot answer. What is finished stays; calling again resumes.
        CorpusError: The corpus has no token.
    """
    held_out = frozenset(map(question_key, held_out_questions))
    rendering = template_digest(tokenizer)
    plan = StudyPlan.build(corpus.digest, teacher.identity, rendering, config, held_out, teacher.kind)
    shards = missing_shards(folder, plan)
    if shards:
        tokenized = TokenizedCorpus.build(corpus, tokenizer)
        for shard in shards:
            make_shard(shard, tokenized, teacher, tokenizer, plan, held_out, folder, progress)
    return complete(folder, plan, progress)


def missing_shards(folder: Path, plan: StudyPlan) -> list[int]:
    """Claim a folder for a study and tell which shards are to be made: any process may make any of them.

    Raises:
        DatasetError: The folder holds another study.
    """
    plan.claim(folder)
    if _finished(folder) is not None:
        return []
    config = plan.config
    return [
        shard
        for shard in range(config.num_shards)
        if not _is_whole(folder / shard_file(shard), plan, config.samples_of_chunk(config.chunks_of_shard(shard)[0])[0])
    ]


def make_shard(
    shard: int,
    corpus: TokenizedCorpus,
    teacher: Teacher,
    tokenizer: Any,
    plan: StudyPlan,
    held_out: Collection[str],
    folder: Path,
    progress: Progress = no_progress,
) -> None:
    """Make one shard of a claimed study: a fixed group of samples, which depends on the plan alone.

    Args:
        shard: Its index.
        corpus: What is studied.
        teacher: Plays both roles.
        tokenizer: The base model's.
        plan: Of the study.
        held_out: Keys (`question_key`) of questions that must not be learnt.
        folder: Of the study.
        progress: Told about samples, as if all before this shard were made.

    Raises:
        TeacherError: The teacher cannot answer.
    """
    config = plan.config
    samples: list[Sample] = []
    for index in config.chunks_of_shard(shard):
        indices = config.samples_of_chunk(index)
        samples += study_chunk(draw_chunk(corpus, config, index), indices, teacher, tokenizer, config, held_out)
        progress(indices[-1] + 1, config.num_conversations, "self-study")
    write_shard(folder / shard_file(shard), samples, plan.digest)


def complete(folder: Path, plan: StudyPlan, progress: Progress = no_progress) -> DatasetManifest:
    """The manifest of a study whose shards are all there, written if it is not there yet.

    Raises:
        DatasetError: A shard is missing, or every conversation was dropped.
    """
    config = plan.config
    progress(config.num_conversations, config.num_conversations, "self-study")
    if (finished := _finished(folder)) is not None:
        return finished
    for leftover in folder.glob(f".{shard_file(0)[:5]}-*.tmp"):  # of writers that were killed
        leftover.unlink(missing_ok=True)
    manifest = DatasetManifest.of_folder(folder, plan)
    if not manifest.num_conversations:
        raise DatasetError(
            f"All {config.num_conversations} conversations were dropped: {manifest.counts}.",
            "Allow longer ones (max_tokens_a, max_tokens_b) or use a model that can hold a conversation.",
        )
    manifest.save(folder)
    return manifest


def _finished(folder: Path) -> DatasetManifest | None:
    """The manifest of a complete and undamaged dataset; damaged shards are removed so that they are made again."""
    if not (folder / MANIFEST_FILE).exists():
        return None
    manifest = DatasetManifest.load(folder)
    damaged = manifest.damaged_files(folder)
    if not damaged:
        return manifest
    (folder / MANIFEST_FILE).unlink()
    for name in damaged:
        (folder / name).unlink(missing_ok=True)
    return None


def _is_whole(path: Path, plan: StudyPlan, first_sample: int) -> bool:
    """Whether a shard of this very study is there; its name alone is not believed."""
    try:
        summary = read_summary(path)
    except DatasetError:
        return False
    return summary.plan_digest == plan.digest and summary.first_sample == first_sample
