"""Evaluations of Cartridges."""

from collections.abc import Mapping

from sqlalchemy import select
from sqlalchemy.orm import Session

from cartridge_core.catalog.insertion import add_once
from cartridge_core.catalog.models import CartridgeRow, EvaluationRow


def record_evaluation(
    session: Session,
    cartridge: CartridgeRow,
    *,
    digest: str,
    benchmark: str,
    num_questions: int,
    score: float | None,
    icl_score: float | None,
    figures: Mapping[str, float],
    report_key: str,
) -> EvaluationRow:
    """The row of an evaluation, written if it is new.

    Args:
        session: Open session.
        cartridge: What was graded.
        digest: Digest of the report.
        benchmark: How replies were graded.
        num_questions: Questions asked of every arm.
        score: The Cartridge's score, 0 to 1.
        icl_score: Score with the corpus in context; None where it does not fit.
        figures: Scores of all arms by name.
        report_key: Folder of the report in the artifact store.
    """
    same = select(EvaluationRow).where(
        EvaluationRow.tenant == cartridge.tenant,
        EvaluationRow.cartridge_id == cartridge.id,
        EvaluationRow.digest == digest,
    )
    return add_once(
        session,
        lambda: session.scalar(same),
        lambda: EvaluationRow(
            tenant=cartridge.tenant,
            cartridge_id=cartridge.id,
            digest=digest,
            benchmark=benchmark,
            num_questions=num_questions,
            score=score,
            icl_score=icl_score,
            figures=dict(figures),
            report_key=report_key,
        ),
    )
