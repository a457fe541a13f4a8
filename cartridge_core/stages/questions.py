"""The questions a Cartridge is graded on: the user's own, or ones asked about parts of the corpus that no study saw."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cartridge_core.benchmarks import Question, load_questions, questions_digest, save_questions
from cartridge_core.progress import Progress, no_progress
from cartridge_core.selfstudy.quiz import QuizConfig
from cartridge_core.settings import Settings
from cartridge_core.stages.ingest import IngestedCorpus, store_of
from cartridge_core.stages.model import model_key
from cartridge_core.stages.store import Facts
from cartridge_core.stages.study import StudiedDataset
from cartridge_core.stages.teacher import borrowed_teacher, teacher_key

QUESTIONS = "questions.jsonl"


@dataclass(frozen=True)
class Exam:
    """Questions and the way their answers are judged."""

    questions: tuple[Question, ...]
    """What is asked."""
    benchmark: str
    """A key of `BENCHMARKS`."""


def exam(
    settings: Settings,
    corpus: IngestedCorpus,
    dataset: StudiedDataset | None,
    file: Path | None = None,
    benchmark: str | None = None,
    model: str | None = None,
    progress: Progress = no_progress,
) -> Exam:
    """The user's questions where there is a file, else ones that the model asks itself.

    Args:
        settings: Store, device, default model.
        corpus: What the questions are about.
        dataset: The study, whose questions must not come back in generated ones.
        file: JSONL file of questions.
        benchmark: How replies are judged. None picks: closed answers where every question names the values that the
            answer could be mistaken for (`distractors`), free answers otherwise.
        model: Hub id or folder; None for the settings' own.
        progress: Told about generated questions.
    """
    if file is not None:
        questions = load_questions(file)
    else:
        questions = generated_questions(settings, corpus, dataset, QuizConfig(), model, progress)
    closed = all(question.distractors for question in questions)
    return Exam(questions, benchmark or ("closed_answer" if closed else "free_answer"))


def generated_questions(
    settings: Settings,
    corpus: IngestedCorpus,
    dataset: StudiedDataset | None,
    config: QuizConfig,
    model: str | None = None,
    progress: Progress = no_progress,
) -> tuple[Question, ...]:
    """Let the model ask and answer questions that no conversation of the dataset holds.

    Args:
        settings: Store, device, default model.
        corpus: What the questions are about.
        dataset: The conversations whose questions must not come back; None where there was no study.
        config: How many questions.
        model: Hub id or folder; None for the settings' own.
        progress: Told about questions.

    Raises:
        TeacherError: The model asked nothing usable.
    """
    inputs = {
        "corpus": corpus.digest,
        "base_model": model_key(settings, model),
        "dataset": dataset.digest if dataset else None,
        "config": config.model_dump(mode="json"),
    } | teacher_key(settings)

    def work(directory: Path) -> Facts:
        from cartridge_core.selfstudy.quiz import generate_questions

        studied = dataset.load() if dataset else None
        with borrowed_teacher(settings, model) as (teacher, tokenizer):
            quiz = generate_questions(
                corpus.load(),
                teacher,
                tokenizer,
                config,
                asked=studied.questions() if studied else (),
                studied_chunks=studied.chunk_ids() if studied else (),
                progress=progress,
            )
        questions = [
            Question(id=f"quiz-{n:04d}", question=q.question, answer=q.answer, metadata={"chunk": q.chunk_id})
            for n, q in enumerate(quiz)
        ]
        save_questions(directory / QUESTIONS, questions)
        return {"num_questions": len(questions), "digest": questions_digest(questions)}

    product = store_of(settings).run("quiz", inputs, work)
    return load_questions(product.directory / QUESTIONS)
