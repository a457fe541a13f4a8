"""Retiring: a Cartridge is kept, but nobody promotes it again, and no gateway keeps it in memory."""

from sqlalchemy.orm import Session

from cartridge_core.catalog.audit import Action, record_event
from cartridge_core.catalog.models import CartridgeRow
from cartridge_core.catalog.pins import end_pins
from cartridge_core.catalog.statuses import (
    Status,
    audit_subject,
    change_status,
    hold,
    refuse_if_aliased,
    status_of,
)
from cartridge_core.errors import CatalogError


def retire(session: Session, cartridge: CartridgeRow, *, reason: str = "", actor: str = "") -> None:
    """Retire a Cartridge; its pins end with that.

    Raises:
        CatalogError: An alias points at it, or it was deleted.
    """
    hold(session, cartridge)
    refuse_if_aliased(session, cartridge, "retire")
    if status_of(session, cartridge) is Status.DELETED:
        raise CatalogError(f"Cartridge {cartridge.digest[:12]} was deleted.", "There is nothing left to retire.")
    if change_status(session, cartridge, Status.RETIRED, reason=reason, actor=actor):
        subject = audit_subject(session, cartridge)
        record_event(session, cartridge.tenant, Action.RETIRE, subject, actor=actor, details={"reason": reason})
    end_pins(session, cartridge)
