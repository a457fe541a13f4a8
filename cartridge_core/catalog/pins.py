"""Pins: which Cartridges gateways keep in memory whatever comes."""

from collections import defaultdict

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from cartridge_core.catalog.cartridges import find_cartridge
from cartridge_core.catalog.entry import CatalogEntry, entries_of
from cartridge_core.catalog.models import BaseModelRow, CartridgeRow, PinRow
from cartridge_core.catalog.statuses import Status
from cartridge_core.manifest import BaseModelIdentity


def record_pin(
    session: Session, tenant: str, corpus: str, reference: str, *, pinned: bool = True, actor: str = ""
) -> bool:
    """Write down that a Cartridge is pinned, or no longer.

    Args:
        session: Open session.
        tenant: Whose Cartridge.
        corpus: Its corpus.
        reference: As `find_cartridge` takes it.
        pinned: Whether it is.
        actor: Who asks.

    Returns:
        Whether that changed anything.

    Raises:
        NotFoundError: There is no such Cartridge.
    """
    number = find_cartridge(session, tenant, corpus, reference).cartridge_id
    ours = PinRow.tenant == tenant, PinRow.cartridge_id == number
    there = session.scalar(select(PinRow.id).where(*ours)) is not None
    if pinned and not there:
        session.add(PinRow(tenant=tenant, cartridge_id=number, actor=actor))
    elif there and not pinned:
        session.execute(delete(PinRow).where(*ours))
    return pinned != there


def list_pins(session: Session, base_model: BaseModelIdentity) -> list[CatalogEntry]:
    """Pinned Cartridges of a base model that may still be served, the oldest pin first.

    Of all tenants: it is asked by a gateway that starts, which serves them all.
    """
    rows = session.scalars(
        select(CartridgeRow)
        .join(PinRow, (PinRow.tenant == CartridgeRow.tenant) & (PinRow.cartridge_id == CartridgeRow.id))
        .join(BaseModelRow, BaseModelRow.id == CartridgeRow.base_model_id)
        .where(
            BaseModelRow.model_id == base_model.id,
            BaseModelRow.revision == base_model.revision,
            BaseModelRow.config_digest == base_model.config_digest,
            BaseModelRow.tokenizer_digest == base_model.tokenizer_digest,
        )
        .order_by(PinRow.id)
    ).all()
    by_tenant: dict[str, list[CartridgeRow]] = defaultdict(list)
    for row in rows:
        by_tenant[row.tenant].append(row)
    entries = [entry for tenant, own in by_tenant.items() for entry in entries_of(session, tenant, own)]
    return [entry for entry in entries if entry.status not in (Status.RETIRED, Status.DELETED)]
