"""Evaluations of compositions: which Cartridges may stand in front of one prompt together."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict
from sqlalchemy import select
from sqlalchemy.orm import Session

from cartridge_core.catalog.models import CompositionEvaluationRow
from cartridge_core.digest import digest_of


class CompositionEntry(BaseModel):
    """The newest evaluation of a composition. A value: it does not follow later changes."""

    model_config = ConfigDict(frozen=True, extra="forbid", from_attributes=True)

    tenant: str
    cartridges: tuple[str, ...]
    """Digests, in order."""
    digest: str
    """Digest of the report."""
    num_questions: int
    score: float | None
    """Over the questions about all corpora, 0 to 1."""
    icl_score: float | None
    """With all corpora in context; None where they do not fit."""
    figures: dict[str, Any]
    """Scores of all arms, corpus by corpus."""
    passed: bool
    """Whether it may be served."""
    gate: dict[str, Any]
    """What was asked of it."""
    reason: str
    """What the gate found."""
    created_at: datetime


def composition_digest(cartridges: Sequence[str]) -> str:
    """Identity of Cartridges in this order, from their digests; another order is another composition."""
    return digest_of(list(cartridges))


def record_composition(
    session: Session,
    tenant: str,
    cartridges: Sequence[str],
    *,
    digest: str,
    num_questions: int,
    score: float | None,
    icl_score: float | None,
    figures: Mapping[str, Any],
    passed: bool,
    gate: Mapping[str, Any],
    reason: str,
    actor: str = "",
) -> CompositionEntry:
    """Write down how a composition did and what the gate said; it counts until the next one.

    Args:
        session: Open session.
        tenant: Whose Cartridges.
        cartridges: Their digests, in order.
        digest: Digest of the report.
        num_questions: Questions about all corpora.
        score: The composition's score over all of them, 0 to 1.
        icl_score: Score with all corpora in context; None where they do not fit.
        figures: Scores of all arms, corpus by corpus.
        passed: Whether the gate lets it be served.
        gate: What was asked of it.
        reason: What the gate found.
        actor: Who asks, for the record.
    """
    row = CompositionEvaluationRow(
        tenant=tenant,
        composition=composition_digest(cartridges),
        cartridges=list(cartridges),
        digest=digest,
        num_questions=num_questions,
        score=score,
        icl_score=icl_score,
        figures=dict(figures),
        passed=passed,
        gate=dict(gate),
        reason=reason,
        actor=actor,
    )
    session.add(row)
    session.flush()
    return CompositionEntry.model_validate(row)


def find_composition(session: Session, tenant: str, cartridges: Sequence[str]) -> CompositionEntry | None:
    """The newest evaluation of exactly these Cartridges in this order; None where there is none."""
    row = session.scalar(
        select(CompositionEvaluationRow)
        .where(
            CompositionEvaluationRow.tenant == tenant,
            CompositionEvaluationRow.composition == composition_digest(cartridges),
        )
        .order_by(CompositionEvaluationRow.id.desc())
        .limit(1)
    )
    return None if row is None else CompositionEntry.model_validate(row)
