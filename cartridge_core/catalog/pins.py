"""Pins: which Cartridges gateways keep in memory whatever comes."""

from collections import defaultdict

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from cartridge_core.catalog.cartridges import find_cartridge
from cartridge_core.catalog.entry import CatalogEntry, entries_of, entry_rows
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


def end_pins(session: Session, cartridge: CartridgeRow) -> None:
    """Let nobody keep a Cartridge any longer: it was retired or erased, and garbage collection leaves pinned ones."""
    session.execute(delete(PinRow).where(PinRow.tenant == cartridge.tenant, PinRow.cartridge_id == cartridge.id))


def list_pins(session: Session, base_model: BaseModelIdentity) -> list[CatalogEntry]:
    """Pinned Cartridges of a base model that may still be served, the oldest pin first.

    Of all tenants: it is asked by a gateway that starts, which serves them all.
    """
    rows = session.execute(
        select(CartridgeRow.tenant, CartridgeRow.id)
        .join(PinRow, (PinRow.tenant == CartridgeRow.tenant) & (PinRow.cartridge_id == CartridgeRow.id))
        .join(BaseModelRow, BaseModelRow.id == CartridgeRow.base_model_id)
        .where(
            BaseModelRow.model_id == base_model.id,
            BaseModelRow.revision == base_model.revision,
            BaseModelRow.config_digest == base_model.config_digest,
            BaseModelRow.tokenizer_digest == base_model.tokenizer_digest,
        )
        .order_by(PinRow.id)
    ).tuples()
    by_tenant: dict[str, list[int]] = defaultdict(list)
    for tenant, number in rows:
        by_tenant[tenant].append(number)
    entries = []
    for tenant, numbers in by_tenant.items():
        found = {
            entry.cartridge_id: entry
            for entry in entries_of(session, tenant, entry_rows(tenant).where(CartridgeRow.id.in_(numbers)))
        }
        entries += [found[number] for number in numbers]
    return [entry for entry in entries if entry.status not in (Status.RETIRED, Status.DELETED)]


def pinned_digests(session: Session, tenant: str) -> frozenset[str]:
    """Digests of a tenant's pinned Cartridges, of whatever base model."""
    return frozenset(
        session.scalars(
            select(CartridgeRow.digest)
            .join(PinRow, (PinRow.tenant == CartridgeRow.tenant) & (PinRow.cartridge_id == CartridgeRow.id))
            .where(PinRow.tenant == tenant)
        )
    )
