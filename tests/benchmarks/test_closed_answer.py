import pytest

from cartridge_core.benchmarks import BENCHMARKS, Question
from cartridge_core.benchmarks.closed_answer import score, values_in

WARDS = ("north", "south", "Maple Garden", "Maple")


def ask(answer: str, *distractors: str) -> Question:
    return Question(id="q", question="Which?", answer=answer, distractors=distractors)


@pytest.mark.parametrize(
    ("answer", "reply", "right", "parsed"),
    [
        ("north", "The ward is north.", True, True),
        ("north", "NORTH", True, True),
        ("north", "south", False, True),
        ("north", "north, not south", False, True),
        ("north", "I do not know.", False, False),
        ("north", "", False, False),
        ("north", "northern", False, False),
        ("north", "the far-north ward", True, True),
        ("Maple Garden", "It is the maple\n  garden.", True, True),
        ("Maple Garden", "It is the Maple.", False, True),
        ("Maple", "It is the Maple.", True, True),
        ("Maple", "It is the Maple Garden.", False, True),
        ("Maple", "Maple, in the Maple Garden.", False, True),
    ],
)
def test_right_holds_the_gold_value_and_no_other(answer: str, reply: str, right: bool, parsed: bool) -> None:
    verdict = score(ask(answer, *WARDS), reply)
    assert (verdict.score, verdict.parsed) == (float(right), parsed)


@pytest.mark.parametrize(
    ("reply", "found"),
    [
        ("room 12", True),
        ("12.", True),
        ("12, on the left", True),
        ("(12)", True),
        ("12%", True),
        ("the 12-bed room", True),
        ("123", False),
        ("312", False),
        ("12.5", False),
        ("0.12", False),
        ("1,12", False),
        ("12,500", False),
        ("12:30", False),
        ("-12", False),
        ("B-12", False),
        ("2012-12-01", False),
        ("12mg", False),
    ],
)
def test_a_number_is_never_found_inside_another(reply: str, found: bool) -> None:
    assert bool(values_in(reply, ("12",))) is found


def test_values_that_overlap_without_containing_each_other_both_count() -> None:
    assert values_in("red oak wood", ("red oak", "oak wood")) == {"red oak", "oak wood"}


def test_compatibility_forms_and_case_folding_are_the_same_value() -> None:
    assert score(ask("Straße", "Gasse"), "die STRASSE").score == 1
    assert score(ask("1 kg", "2 kg"), "１ kg").score == 1
    assert score(ask("café", "bar"), "the cafe\u0301").score == 1


def test_values_of_regular_expression_characters_are_plain_text() -> None:
    assert score(ask("C++", "C", "C#"), "in C++, of course").score == 1
    assert score(ask("a.b", "c"), "axb").parsed is False


def test_the_answer_among_the_distractors_is_passed_over() -> None:
    assert score(ask("north", "north", "South"), "north").score == 1


def test_the_interval_is_wilsons() -> None:
    interval = BENCHMARKS["closed_answer"].interval([1.0] * 8 + [0.0] * 2, 1000, 0)
    # Newcombe (1998), table I style: 8 of 10 gives 0.4902 to 0.9433.
    assert interval.low == pytest.approx(0.4902, abs=5e-5)
    assert interval.high == pytest.approx(0.9433, abs=5e-5)
