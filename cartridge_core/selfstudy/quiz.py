"""A quiz: questions about a corpus for documents that come without any, so that a Cartridge can always be graded."""

import random
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from cartridge_core.corpus.chunking import Chunk, ChunkConfig, sample_chunk
from cartridge_core.corpus.corpus import Corpus
from cartridge_core.corpus.tokenized import TokenizedCorpus
from cartridge_core.errors import TeacherError
from cartridge_core.progress import Progress, no_progress
from cartridge_core.selfstudy.config import check_families
from cartridge_core.selfstudy.focus import draw_seed_prompt
from cartridge_core.selfstudy.question_key import question_key
from cartridge_core.selfstudy.roles import answer_questions, ask_questions
from cartridge_core.selfstudy.seeding import derive_seed, spread_position
from cartridge_core.teacher.protocol import Teacher

_REDRAWS = 8
"""How often a chunk that self-study has seen is drawn anew: a document shorter than a chunk is always the same one."""


class QuizConfig(BaseModel):
    """How many questions are made and how."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_questions: int = Field(default=200, gt=0)
    """Questions that are wanted."""
    questions_per_chunk: int = Field(default=4, gt=0)
    """Most questions taken from one chunk: few, so that the quiz covers the whole corpus."""
    attempts_per_chunk: int = Field(default=16, gt=0)
    """Questions the asker is made to ask about a chunk; more than are taken, because known ones do not count."""
    max_chunks: int | None = Field(default=None, gt=0)
    """Chunks after which the search ends; None allows four times as many as are needed at best."""
    families: tuple[str, ...] = ("question",)
    """Seed families, taking turns. Questions are graded by comparing short answers, which suits this one."""
    focus_words: int | None = Field(default=24, gt=0)
    """As in `SelfStudyConfig`."""
    temperature: float = Field(default=0.8, ge=0.0)
    """Sampling temperature of the asker; the answerer is greedy."""
    max_tokens_a: int = Field(default=128, gt=0)
    """Most tokens of a question; a longer one is dropped."""
    max_tokens_b: int = Field(default=256, gt=0)
    """Most tokens of an answer; a longer one is dropped."""
    chunk: ChunkConfig = ChunkConfig()
    """How long a chunk is."""
    seed: int = 0
    """Seed of every draw; the quiz draws from streams of its own, so it may equal self-study's."""

    @model_validator(mode="after")
    def _known_families(self) -> Self:
        check_families(self.families)
        return self

    @property
    def chunk_limit(self) -> int:
        """Chunks after which the search ends."""
        return self.max_chunks or 4 * -(-self.num_questions // self.questions_per_chunk)


@dataclass(frozen=True)
class QuizQuestion:
    """A question with the answer that a reader of the chunk gives."""

    question: str
    """The question."""
    answer: str
    """The teacher's greedy answer with the chunk in front of it."""
    chunk_id: str
    """The chunk that holds the answer."""


def generate_questions(
    corpus: Corpus,
    teacher: Teacher,
    tokenizer: Any,
    config: QuizConfig,
    asked: Iterable[str] = (),
    studied_chunks: Iterable[str] = (),
    progress: Progress = no_progress,
) -> list[QuizQuestion]:
    """Questions about a corpus that self-study never asked.

    Chunks and seed prompts are drawn from random streams that self-study does not use. The facts may have been studied,
    as they must for a Cartridge to know them; the chunks (where a document is longer than one) and the questions have
    not.

    Args:
        corpus: What to ask about.
        teacher: Asks and answers.
        tokenizer: The base model's.
        config: How many and how.
        asked: Questions of the self-study dataset (`ConversationDataset.questions`); none of them is returned,
            whatever its case and punctuation.
        studied_chunks: Chunks of the self-study dataset (`ConversationDataset.chunk_ids`), avoided where possible.
        progress: Told about questions.

    Returns:
        At most `num_questions`, all different; fewer when the search ends first.

    Raises:
        TeacherError: Not one question could be made.
    """
    known = set(map(question_key, asked))
    studied = frozenset(studied_chunks)
    tokenized = TokenizedCorpus.build(corpus, tokenizer)
    quiz: list[QuizQuestion] = []
    for index in range(config.chunk_limit):
        if len(quiz) == config.num_questions:
            break
        wanted = min(config.questions_per_chunk, config.num_questions - len(quiz))
        quiz += _question_chunk(_draw_chunk(tokenized, config, index, studied), index, wanted, teacher, config, known)
        progress(len(quiz), config.num_questions, "questions")
    if not quiz:
        raise TeacherError(
            f"{teacher.identity.id} made no new question about corpus {corpus.name!r} in {config.chunk_limit} chunks.",
            "Give questions of your own, or raise max_tokens_a, max_tokens_b or the temperature.",
        )
    return quiz


def _draw_chunk(corpus: TokenizedCorpus, config: QuizConfig, index: int, studied: Collection[str]) -> Chunk:
    rng = random.Random(derive_seed(config.seed, "quiz chunk", index))
    position = spread_position(derive_seed(config.seed, "quiz offset") / 2**63, index)
    chunk = sample_chunk(corpus, rng, config.chunk, position)
    for _ in range(_REDRAWS):
        if chunk.id not in studied:
            break
        chunk = sample_chunk(corpus, rng, config.chunk)
    return chunk


def _question_chunk(
    chunk: Chunk, index: int, wanted: int, teacher: Teacher, config: QuizConfig, known: set[str]
) -> list[QuizQuestion]:
    """Up to `wanted` new questions about a chunk; their keys join `known`."""
    first = index * config.attempts_per_chunk
    seeds = [derive_seed(config.seed, "quiz", first + place) for place in range(config.attempts_per_chunk)]
    prompts = []
    for place, seed in enumerate(seeds):
        family = config.families[(first + place) % len(config.families)]
        position = spread_position(derive_seed(config.seed, "quiz focus") / 2**63, first + place)
        prompts.append(draw_seed_prompt(family, seed, chunk.text, position, config.focus_words))
    new: dict[str, str] = {}
    for generation in ask_questions(teacher, chunk, prompts, seeds, config.temperature, config.max_tokens_a):
        question = generation.text.strip()
        key = question_key(question)
        if generation.finished and key and key not in known:
            new.setdefault(key, question)
    taken = list(new.items())[:wanted]
    questions = [question for _, question in taken]
    answers = answer_questions(teacher, chunk, questions, [0] * len(taken), 0.0, config.max_tokens_b)
    made: list[QuizQuestion] = []
    for (key, question), answer in zip(taken, answers, strict=True):
        if answer.finished and answer.text.strip():
            known.add(key)
            made.append(QuizQuestion(question, answer.text.strip(), chunk.id))
    return made
