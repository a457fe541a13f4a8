"""Retiring: a Cartridge is kept, but nobody promotes it again, and no gateway keeps it in memory."""

from sqlalchemy.orm import Session

from cartridge_core.catalog import statuses
from cartridge_core.catalog.models import CartridgeRow
from cartridge_core.catalog.pins import end_pins


def retire(session: Session, cartridge: CartridgeRow, *, reason: str = "", actor: str = "") -> None:
    """Retire a Cartridge; its pins end with that.

    Raises:
        CatalogError: An alias points at it, or it was deleted.
    """
    statuses.retire(session, cartridge, reason=reason, actor=actor)
    end_pins(session, cartridge)
