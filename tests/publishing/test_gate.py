import pytest
from pydantic import ValidationError

from cartridge_core.publishing import PromotionGate, decide
from cartridge_core.report import EvaluationReport
from tests.samples import CORPUS, REFERENCE, arm, grade

DIGEST = "a" * 64


def test_enough_of_icl_passes_and_says_how_much() -> None:
    decision = decide(grade(DIGEST, 19, icl=20))
    assert decision.passed
    assert (
        decision.sentence == "accuracy 0.950 against 1.000 with the corpus in context (95.0%); the gate asks for 95.0%."
    )


def test_too_little_of_icl_fails() -> None:
    decision = decide(grade(DIGEST, 18, icl=20))
    assert not decision.passed
    assert "0.900 against 1.000" in decision.sentence
    assert decide(grade(DIGEST, 18, icl=20), PromotionGate(min_share_of_icl=0.9)).passed


def test_better_than_icl_passes() -> None:
    assert decide(grade(DIGEST, 20, icl=12)).passed


def test_it_must_beat_knowing_nothing() -> None:
    """Where ICL fails altogether, any share of it is reached: by a useless Cartridge too."""
    decision = decide(grade(DIGEST, 0, icl=0, no_context=0))
    assert not decision.passed
    assert decision.reasons == ("It is no better than no context at all: 0.000 against 0.000.",)
    assert not decide(grade(DIGEST, 3, icl=3, no_context=3)).passed
    assert decide(grade(DIGEST, 4, icl=4, no_context=3)).passed


def test_a_handful_of_questions_decides_nothing() -> None:
    decision = decide(grade(DIGEST, 9, icl=9, no_context=0, n=9))
    assert not decision.passed
    assert "answered 9 questions; the gate asks for 10" in decision.sentence
    assert decide(grade(DIGEST, 9, icl=9, no_context=0, n=9), PromotionGate(min_questions=9)).passed


def test_questions_that_could_not_be_asked_count_against_it() -> None:
    assert decide(grade(DIGEST, 19, errors=1)).passed
    decision = decide(grade(DIGEST, 19, errors=2))
    assert not decision.passed
    assert "2 of 20 questions could not be asked of arm 'self_study'" in decision.sentence


def test_a_corpus_that_does_not_fit_is_judged_by_score_alone() -> None:
    assert decide(grade(DIGEST, 10, icl=None)).passed
    decision = decide(grade(DIGEST, 9, icl=None))
    assert not decision.passed
    assert "does not fit the model's window" in decision.sentence
    assert decide(grade(DIGEST, 9, icl=None), PromotionGate(min_score_without_icl=0.4)).passed


def test_without_an_icl_arm_nothing_is_promoted() -> None:
    report = grade(DIGEST)
    bare = report.model_copy(update={"arms": tuple(arm for arm in report.arms if arm.name != "icl")})
    decision = decide(bare)
    assert not decision.passed
    assert decision.reasons == ("The report has no ICL arm to compare with.",)


def test_a_cartridge_without_a_score_is_not_promoted() -> None:
    own = arm("self_study", 0, cartridge_digest=DIGEST).model_copy(update={"score": None, "fits": False})
    decision = decide(grade(DIGEST).model_copy(update={"arms": (arm("icl", 20), own)}))
    assert not decision.passed
    assert decision.reasons == ("Arm 'self_study' has no score.",)


def test_every_reason_is_told() -> None:
    decision = decide(grade(DIGEST, 1, icl=20, no_context=2, errors=5))
    assert len(decision.reasons) == 3


def test_deciding_changes_nothing() -> None:
    report = grade(DIGEST)
    before = report.digest
    assert decide(report) == decide(report)
    assert report.digest == before
    assert EvaluationReport.from_json(report.to_json()).digest == before
    assert (report.corpus_digest, report.base_model) == (CORPUS.digest, REFERENCE)


def test_a_gate_is_checked() -> None:
    with pytest.raises(ValidationError):
        PromotionGate(min_questions=0)
    with pytest.raises(ValidationError):
        PromotionGate(min_share=0.5)  # type: ignore[call-arg]
