"""Compositions before the gate: whether Cartridges may stand in front of one prompt together, written down."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cartridge_core.baselines import ICL
from cartridge_core.catalog import CompositionEntry, catalog_session, record_composition
from cartridge_core.evaluation import ArmResult
from cartridge_core.publishing.gate import GateDecision, PromotionGate, decide
from cartridge_core.report import EvaluationReport
from cartridge_core.settings import Settings


@dataclass(frozen=True)
class CompositionGrades:
    """How a composition did in the questions about each of its corpora."""

    cartridges: tuple[str, ...]
    """Digests, in order."""
    reports: Mapping[str, EvaluationReport]
    """Corpus to report, in the same order; each is about the composition as a whole."""
    digest: str
    """Digest over the reports."""


def judge_composition(reports: Mapping[str, EvaluationReport], gate: PromotionGate | None = None) -> GateDecision:
    """Whether a composition may be served: it must pass the promotion gate in the questions about every corpus.

    Args:
        reports: Corpus to report, as `CompositionGrades` holds them.
        gate: What is asked in each; the defaults where nobody says.
    """
    decisions = {corpus: decide(report, gate) for corpus, report in reports.items()}
    passed = all(decision.passed for decision in decisions.values())
    told = {corpus: decision for corpus, decision in decisions.items() if passed or not decision.passed}
    return GateDecision(
        passed=passed, reasons=tuple(f"{corpus}: {decision.sentence}" for corpus, decision in told.items())
    )


def record_judged(
    settings: Settings, grades: CompositionGrades, gate: PromotionGate | None = None, actor: str = ""
) -> CompositionEntry:
    """Judge a composition and write it down: from now on that decides whether gateways serve it.

    Args:
        settings: Name the catalog and the tenant.
        grades: How it did.
        gate: What is asked; the defaults where nobody says.
        actor: Who asks, for the record.

    Raises:
        CatalogError: The catalog refuses.
    """
    gate = gate or PromotionGate()
    decision = judge_composition(grades.reports, gate)
    own = [report.cartridge for report in grades.reports.values()]
    icl = [report.find(ICL) for report in grades.reports.values()]
    with catalog_session(settings) as session:
        return record_composition(
            session,
            settings.tenant,
            grades.cartridges,
            digest=grades.digest,
            num_questions=sum(arm.n for arm in own),
            score=_over_all(own),
            icl_score=_over_all(icl),
            figures=_figures(grades.reports),
            passed=decision.passed,
            gate=gate.model_dump(mode="json"),
            reason=decision.sentence,
            actor=actor,
        )


def _over_all(arms: Sequence[ArmResult | None]) -> float | None:
    """Mean score over the questions of all corpora; None where an arm has none."""
    scored = [(arm.score * arm.n, arm.n) for arm in arms if arm is not None and arm.score is not None]
    if len(scored) < len(arms):
        return None
    return sum(right for right, _ in scored) / sum(n for _, n in scored)


def _figures(reports: Mapping[str, EvaluationReport]) -> dict[str, Any]:
    return {corpus: {arm.name: arm.score for arm in report.arms} for corpus, report in reports.items()}
