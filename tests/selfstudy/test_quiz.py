from pathlib import Path

import pytest

from cartridge_core.corpus import Corpus
from cartridge_core.dataset import ConversationDataset
from cartridge_core.errors import TeacherError
from cartridge_core.models import BaseModel
from cartridge_core.selfstudy.config import SelfStudyConfig
from cartridge_core.selfstudy.question_key import question_key
from cartridge_core.selfstudy.quiz import QuizConfig, QuizQuestion, generate_questions
from cartridge_core.selfstudy.synthesize import synthesize
from cartridge_core.teacher.local import LocalTeacher


@pytest.fixture(scope="module")
def quiz_config(config: SelfStudyConfig) -> QuizConfig:
    return QuizConfig(
        num_questions=12,
        questions_per_chunk=3,
        attempts_per_chunk=8,
        temperature=1.0,
        max_tokens_a=12,
        max_tokens_b=12,
        chunk=config.chunk,
        seed=config.seed,
    )


@pytest.fixture(scope="module")
def quiz(base: BaseModel, corpus: Corpus, quiz_config: QuizConfig) -> list[QuizQuestion]:
    return generate_questions(corpus, LocalTeacher(base), base.tokenizer, quiz_config)


def keys(quiz: list[QuizQuestion]) -> list[str]:
    return [question_key(entry.question) for entry in quiz]


def test_questions_are_answered_and_all_different(quiz: list[QuizQuestion]) -> None:
    assert len(quiz) == 12
    assert len(set(keys(quiz))) == 12
    assert all(entry.question and entry.answer for entry in quiz)
    per_chunk = [sum(entry.chunk_id == chunk for entry in quiz) for chunk in {entry.chunk_id for entry in quiz}]
    assert max(per_chunk) <= 3


def test_a_quiz_repeats_with_its_seed(
    base: BaseModel, corpus: Corpus, quiz_config: QuizConfig, quiz: list[QuizQuestion]
) -> None:
    assert generate_questions(corpus, LocalTeacher(base), base.tokenizer, quiz_config) == quiz
    other = quiz_config.model_copy(update={"seed": 1})
    assert generate_questions(corpus, LocalTeacher(base), base.tokenizer, other) != quiz


def test_no_question_of_the_study_is_asked_again(
    base: BaseModel,
    corpus: Corpus,
    config: SelfStudyConfig,
    quiz_config: QuizConfig,
    quiz: list[QuizQuestion],
    tmp_path: Path,
) -> None:
    synthesize(corpus, LocalTeacher(base), base.tokenizer, config, tmp_path)
    dataset = ConversationDataset.load(tmp_path)
    # A study that happened to ask half of the quiz, in other letters.
    asked = dataset.questions() + [f"{entry.question.swapcase()} !" for entry in quiz[::2]]
    fresh = generate_questions(
        corpus, LocalTeacher(base), base.tokenizer, quiz_config, asked=asked, studied_chunks=dataset.chunk_ids()
    )
    assert not set(keys(fresh)) & set(map(question_key, asked))
    assert not {entry.chunk_id for entry in fresh} & set(dataset.chunk_ids())


def test_a_studied_chunk_is_avoided_where_another_can_be_drawn(
    base: BaseModel, corpus: Corpus, quiz_config: QuizConfig, quiz: list[QuizQuestion]
) -> None:
    studied = [entry.chunk_id for entry in quiz]
    fresh = generate_questions(corpus, LocalTeacher(base), base.tokenizer, quiz_config, studied_chunks=studied)
    assert not {entry.chunk_id for entry in fresh} & set(studied)
    short = Corpus("short", (corpus.documents[0].__class__("a", "A", "text/plain", "The ward is green."),))
    (only,) = {e.chunk_id for e in generate_questions(short, LocalTeacher(base), base.tokenizer, quiz_config)}
    again = generate_questions(short, LocalTeacher(base), base.tokenizer, quiz_config, studied_chunks=[only])
    assert {entry.chunk_id for entry in again} == {only}


def test_a_search_that_finds_nothing_is_an_error(base: BaseModel, corpus: Corpus, quiz_config: QuizConfig) -> None:
    mute = quiz_config.model_copy(update={"max_tokens_b": 1, "max_chunks": 1, "attempts_per_chunk": 2})
    with pytest.raises(TeacherError, match=r"talkative made no new question about corpus 'wards' in 1 chunks"):
        generate_questions(corpus, LocalTeacher(base), base.tokenizer, mute)
