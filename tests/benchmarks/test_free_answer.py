import pytest

from cartridge_core.benchmarks import Question
from cartridge_core.benchmarks.free_answer import score, squad_tokens, token_f1


@pytest.mark.parametrize(
    ("reply", "reference", "f1"),
    [
        ("The cat sat on the mat.", "a cat sat on a mat", 1.0),
        ("cat", "cat sat", 2 / 3),
        ("cat cat", "cat", 2 / 3),
        ("cat cat", "cat cat dog", 4 / 5),
        ("cat sat mat", "dog sat mat", 2 / 3),
        ("dog", "cat", 0.0),
        ("the", "a", 1.0),
        ("cat", "the", 0.0),
    ],
)
def test_token_f1(reply: str, reference: str, f1: float) -> None:
    assert token_f1(reply, reference) == pytest.approx(f1)


def test_normalisation_is_squads() -> None:
    assert squad_tokens("An  apple, the Anthem; it's theirs") == ["apple", "anthem", "its", "theirs"]


def test_a_reply_without_a_token_is_unparsed() -> None:
    question = Question(id="q", question="?", answer="the")
    assert score(question, " ... ").parsed is False
    assert score(question, " ... ").score == 0
    assert score(question, "something").parsed is True
