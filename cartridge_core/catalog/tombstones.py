"""Proof that a Cartridge was erased."""

from collections.abc import Sequence

from sqlalchemy.orm import Session

from cartridge_core.catalog.audit import Action, record_event
from cartridge_core.catalog.models import CartridgeRow, TombstoneRow
from cartridge_core.catalog.pins import end_pins
from cartridge_core.catalog.statuses import Status, audit_subject, change_status


def record_tombstone(
    session: Session, cartridge: CartridgeRow, removed: Sequence[str], *, reason: str = "", actor: str = ""
) -> TombstoneRow:
    """Write down what was removed of a Cartridge and why; its status becomes `deleted`, and its pins end.

    Args:
        session: Open session.
        cartridge: What was erased.
        removed: Addresses of the objects that were removed.
        reason: Why.
        actor: Who asked for it.
    """
    row = TombstoneRow(
        tenant=cartridge.tenant,
        cartridge_id=cartridge.id,
        digest=cartridge.digest,
        removed=list(removed),
        reason=reason,
        actor=actor,
    )
    session.add(row)
    change_status(session, cartridge, Status.DELETED, reason=reason, actor=actor)
    end_pins(session, cartridge)
    details = {"reason": reason, "removed": len(removed)}
    subject = audit_subject(session, cartridge)
    record_event(session, cartridge.tenant, Action.ERASE, subject, actor=actor, details=details)
    return row
