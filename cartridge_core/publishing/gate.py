"""The promotion gate: whether a Cartridge is good enough to be served. A pure question about a report."""

from pydantic import BaseModel, ConfigDict, Field

from cartridge_core.baselines import ICL, NO_CONTEXT
from cartridge_core.evaluation import ArmResult
from cartridge_core.report import EvaluationReport


class PromotionGate(BaseModel):
    """What a Cartridge must show before an alias moves to it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_share_of_icl: float = Field(default=0.95, ge=0)
    """Least share of the score that the whole corpus in context reaches."""
    min_score_without_icl: float = Field(default=0.5, ge=0, le=1)
    """Least score where the corpus does not fit the model's window, so that there is nothing to take a share of."""
    min_questions: int = Field(default=10, ge=1)
    """Fewest questions that a decision may rest on."""
    max_error_share: float = Field(default=0.05, ge=0, le=1)
    """Largest share of questions that could not be asked of the Cartridge or of ICL."""


class GateDecision(BaseModel):
    """The gate's answer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    passed: bool
    """Whether the alias may move."""
    reasons: tuple[str, ...]
    """What was found, one sentence each: everything that failed, or what let it pass."""

    @property
    def sentence(self) -> str:
        """The reasons in one line."""
        return " ".join(self.reasons)


def decide(report: EvaluationReport, gate: PromotionGate | None = None) -> GateDecision:
    """Whether the Cartridge of a report may be served.

    It must reach a share of what the base model does with the whole corpus in context, beat the base model that knows
    nothing of it, and have shown both on enough questions that could be asked.

    Args:
        report: How the Cartridge and its baselines did.
        gate: What is asked; the defaults where nobody says.
    """
    gate = gate or PromotionGate()
    own, icl, without = report.cartridge, report.find(ICL), report.find(NO_CONTEXT)
    failures = [*_unusable(own, gate)]
    passed: list[str] = []
    if own.score is not None:
        if icl is None:
            failures.append("The report has no ICL arm to compare with.")
        elif icl.score is None:
            _compare(
                own.score >= gate.min_score_without_icl,
                f"The corpus does not fit the model's window; {report.metric} {own.score:.3f} against a least of "
                f"{gate.min_score_without_icl:.3f}.",
                passed,
                failures,
            )
        else:
            failures += [] if icl is own else _unusable(icl, gate)
            _compare(
                own.score >= gate.min_share_of_icl * icl.score,
                f"{report.metric} {own.score:.3f} against {icl.score:.3f} with the corpus in context"
                f"{_share(own.score, icl.score)}; the gate asks for {gate.min_share_of_icl:.1%}.",
                passed,
                failures,
            )
        if without is not None and without.score is not None and own.score <= without.score:
            failures.append(f"It is no better than no context at all: {own.score:.3f} against {without.score:.3f}.")
    return GateDecision(passed=not failures, reasons=tuple(failures or passed))


def _unusable(arm: ArmResult, gate: PromotionGate) -> list[str]:
    problems = []
    if arm.score is None:
        problems.append(f"Arm '{arm.name}' has no score.")
    if arm.n < gate.min_questions:
        problems.append(f"Arm '{arm.name}' answered {arm.n} questions; the gate asks for {gate.min_questions}.")
    elif arm.errors > gate.max_error_share * arm.n:
        problems.append(
            f"{arm.errors} of {arm.n} questions could not be asked of arm '{arm.name}'; the gate allows "
            f"{gate.max_error_share:.0%}."
        )
    return problems


def _compare(holds: bool, sentence: str, passed: list[str], failures: list[str]) -> None:
    (passed if holds else failures).append(sentence)


def _share(score: float, of: float) -> str:
    return f" ({score / of:.1%})" if of else ""
