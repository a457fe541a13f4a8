"""Flow `promote-cartridge`: a Cartridge becomes champion, if the gate lets it through."""

from collections.abc import Mapping
from typing import Any

from prefect import flow

from cartridge_core.catalog import CHAMPION
from cartridge_core.publishing import PromotionGate, promote
from cartridge_core.settings import Settings
from cartridge_core.stages.config import config_of
from flows.naming import run_name
from flows.parameters import Fraction, Name, NumQuestions, Share
from flows.reporting import show_markdown, tell_result
from flows.retrying import with_retries


@flow(name="promote-cartridge", flow_run_name=run_name("promote"))
def promote_cartridge(
    corpus: Name,
    reference: str | None = None,
    min_share_of_icl: Share = 0.95,
    alias: Name = CHAMPION,
    reason: str = "",
    min_score_without_icl: Fraction | None = None,
    min_questions: NumQuestions | None = None,
    max_error_share: Fraction | None = None,
) -> dict[str, Any]:
    """Ask the gate and move the alias. A refusal is a result, not a failure of the run.

    Args:
        corpus: Name of the corpus.
        reference: Version, alias or beginning of a digest; None for the newest.
        min_share_of_icl: The gate: at least this share of in-context learning's score.
        alias: What to move.
        reason: Why, for the record.
        min_score_without_icl: The gate: at least this score where the corpus does not fit the model's window; None for
            the gate's own.
        min_questions: The gate: at least so many questions; None for the gate's own.
        max_error_share: The gate: at most this share of questions that could not be asked; None for the gate's own.

    Returns:
        Whether it passed and moved, and the reasons.
    """
    gate = config_of(
        PromotionGate,
        min_share_of_icl=min_share_of_icl,
        min_score_without_icl=min_score_without_icl,
        min_questions=min_questions,
        max_error_share=max_error_share,
    )
    promotion = with_retries(
        "promote",
        lambda: promote(Settings(), corpus, reference, alias=alias, gate=gate, reason=reason, actor="prefect"),
    )
    decision = promotion.decision
    passed = decision is not None and decision.passed
    reasons = list(decision.reasons) if decision else []
    told = {"passed": passed, "moved": promotion.moved, "alias": alias, "reasons": reasons}
    show_markdown("promotion", verdict(told), f"The gate on {corpus}")
    return tell_result("promote-cartridge", told)


def verdict(told: Mapping[str, Any]) -> str:
    """What the gate said, in Markdown.

    Args:
        told: Result of `promote_cartridge`.
    """
    word = "Promoted" if told["passed"] else "Not promoted"
    return f"**{word}:** {' '.join(told['reasons'])}"
