import json
from pathlib import Path

import pytest

from cartridge_core.benchmarks import Question, load_questions, questions_digest, save_questions
from cartridge_core.errors import EvaluationError


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    questions = (
        # U+2028 is a line break to some, not to JSON.
        Question(id="a", question="Which\u2028ward?", answer="north", distractors=("south",), metadata={"n": 1}),
        Question(id="b", question="Wo liegt Malmö?", answer="Schweden"),
    )
    path = tmp_path / "deep" / "questions.jsonl"
    save_questions(path, questions)
    assert load_questions(path) == questions
    assert questions_digest(load_questions(path)) == questions_digest(questions)
    assert [entry.name for entry in path.parent.iterdir()] == ["questions.jsonl"]


def test_a_question_without_an_id_is_named_by_its_line(tmp_path: Path) -> None:
    path = write(tmp_path / "q.jsonl", '{"question": "A?", "answer": "a"}', "", '{"question": "B?", "answer": "b"}')
    assert [question.id for question in load_questions(path)] == ["line-0001", "line-0003"]
    assert load_questions(path)[0].messages == [{"role": "user", "content": "A?"}]


def test_the_digest_follows_content_and_order() -> None:
    a, b = Question(id="a", question="A?", answer="a"), Question(id="b", question="B?", answer="b")
    digests = {questions_digest(q) for q in ((a, b), (b, a), (a,), (a, b.model_copy(update={"distractors": ("c",)})))}
    assert len(digests) == 4


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["not json"], r"line 1: not JSON"),
        (["[1]"], r"line 1: a JSON object was expected, not list"),
        (['{"question": "A?"}'], r"line 1: field 'answer'"),
        (['{"question": "A?", "answer": "  "}'], r"line 1: field 'answer'"),
        (['{"question": "A?", "answer": "a", "anwser": "b"}'], r"line 1: field 'anwser'"),
        ([json.dumps({"id": "x", "question": "A?", "answer": "a"})] * 2, r"line 2: the id 'x' was used before"),
        ([""], r"holds no question"),
    ],
)
def test_a_bad_file_is_named_with_its_line(tmp_path: Path, lines: list[str], message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        load_questions(write(tmp_path / "q.jsonl", *lines))


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"missing\.jsonl cannot be read"):
        load_questions(tmp_path / "missing.jsonl")
    (tmp_path / "latin.jsonl").write_bytes(b'{"question": "\xe9?", "answer": "a"}')
    with pytest.raises(EvaluationError, match="cannot be read"):
        load_questions(tmp_path / "latin.jsonl")
