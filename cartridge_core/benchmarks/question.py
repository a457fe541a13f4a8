"""The record every benchmark asks: one question, its answer and the answers it could be mistaken for."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, JsonValue, StringConstraints, ValidationError

from cartridge_core.atomic_file import atomic_file
from cartridge_core.digest import digest_of
from cartridge_core.errors import EvaluationError

Text = Annotated[str, StringConstraints(min_length=1, pattern=r"\S")]


class Question(BaseModel):
    """One question about a corpus."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: Text
    """Unique within its file; rows of a report are named by it."""
    question: Text
    """What the user asks, as it stands in the user's turn."""
    answer: Text
    """The gold answer: a value (closed answers) or a reference text (free answers)."""
    distractors: tuple[Text, ...] = ()
    """The other values of the asked attribute; the answer itself may be among them and is passed over."""
    metadata: dict[str, JsonValue] = {}
    """Anything that helps to read the result: document, attribute, difficulty."""

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation that asks the question."""
        return [{"role": "user", "content": self.question}]


def load_questions(path: str | Path) -> tuple[Question, ...]:
    """Read questions from a local JSONL file, one object a line; a question without an `id` is named by its line.

    Raises:
        EvaluationError: The file is unreadable or holds no question, a line is no question, or two share an id.
    """
    path = Path(path)
    try:
        # Not splitlines(): JSON strings may hold line separators other than the newline.
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluationError(
            f"The questions file {path} cannot be read: {error}.", "Give a UTF-8 JSONL file."
        ) from error
    questions: dict[str, Question] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        question = _parse(line, f"{path}, line {number}", default_id=f"line-{number:04d}")
        if question.id in questions:
            raise EvaluationError(f"{path}, line {number}: the id '{question.id}' was used before.", "Make ids unique.")
        questions[question.id] = question
    if not questions:
        raise EvaluationError(f"The questions file {path} holds no question.", "Write one JSON object a line.")
    return tuple(questions.values())


def save_questions(path: str | Path, questions: Sequence[Question]) -> None:
    """Write questions as JSONL, all of them or (if interrupted) none."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as stream:
        for question in questions:
            stream.write(json.dumps(question.model_dump(mode="json"), ensure_ascii=False).encode() + b"\n")


def questions_digest(questions: Sequence[Question]) -> str:
    """Hex sha256 over the questions in their order: two reports may be compared when theirs are equal."""
    return digest_of([question.model_dump(mode="json") for question in questions])


def _parse(line: str, where: str, default_id: str) -> Question:
    remedy = 'A line reads {"question": "...", "answer": "...", "distractors": ["..."]}.'
    try:
        record: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise EvaluationError(f"{where}: not JSON ({error.msg}).", remedy) from error
    if not isinstance(record, dict):
        raise EvaluationError(f"{where}: a JSON object was expected, not {type(record).__name__}.", remedy)
    try:
        return Question.model_validate({"id": default_id, **record})
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise EvaluationError(f"{where}: field '{field}': {first['msg']}.", remedy) from error
