"""What happened to a Cartridge since it was written down."""

from collections.abc import Iterable
from enum import StrEnum

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from cartridge_core.catalog.models import AliasRow, CartridgeRow, CorpusRow, CorpusVersionRow, StatusChangeRow
from cartridge_core.errors import CatalogError


class Status(StrEnum):
    """Where a Cartridge stands."""

    REGISTERED = "registered"
    """It has a version; no alias has pointed at it yet."""
    PUBLISHED = "published"
    """An alias points at it, or once did."""
    RETIRED = "retired"
    """It is kept but may not be promoted."""
    DELETED = "deleted"
    """Its files are gone; a tombstone says why."""
    RESTORED = "restored"
    """Its files came back after a deletion."""


_LOCKS = 0x43615274 << 32
"""First of the numbers, one a Cartridge, under which PostgreSQL keeps its lock."""


def hold(session: Session, cartridge: CartridgeRow) -> None:
    """Let nobody else decide what becomes of a Cartridge until this transaction ends.

    Whoever promotes, retires or deletes one holds it first, so that what was seen of it stays true. On SQLite there is
    one writer at a time anyway; and no role may lock the rows themselves, which nobody may change.
    """
    if session.get_bind().dialect.name == "postgresql":
        session.execute(select(func.pg_advisory_xact_lock(_LOCKS + cartridge.id)))


def status_of(session: Session, cartridge: CartridgeRow) -> Status:
    """The newest status of a Cartridge."""
    return statuses_of(session, cartridge.tenant, [cartridge.id])[cartridge.id]


def statuses_of(session: Session, tenant: str, cartridge_ids: Iterable[int]) -> dict[int, Status]:
    """The newest status of each Cartridge; `registered` where nothing was said."""
    ids = list(cartridge_ids)
    newest = (
        select(func.max(StatusChangeRow.id))
        .where(StatusChangeRow.tenant == tenant, StatusChangeRow.cartridge_id.in_(ids))
        .group_by(StatusChangeRow.cartridge_id)
    )
    rows = session.execute(
        select(StatusChangeRow.cartridge_id, StatusChangeRow.status).where(StatusChangeRow.id.in_(newest))
    )
    return dict.fromkeys(ids, Status.REGISTERED) | {row: Status(status) for row, status in rows.tuples()}


def change_status(
    session: Session, cartridge: CartridgeRow, status: Status, *, reason: str = "", actor: str = ""
) -> bool:
    """Write down a new status, unless it is the present one.

    Returns:
        Whether it was another.
    """
    session.flush()
    written = session.scalar(select(StatusChangeRow.id).where(StatusChangeRow.cartridge_id == cartridge.id).limit(1))
    if written is not None and status_of(session, cartridge) == status:
        return False
    session.add(
        StatusChangeRow(
            tenant=cartridge.tenant, cartridge_id=cartridge.id, status=status.value, reason=reason, actor=actor
        )
    )
    session.flush()
    return True


def audit_subject(session: Session, cartridge: CartridgeRow) -> str:
    """What the audit log calls a Cartridge: its corpus and its digest."""
    corpus = session.scalar(
        select(CorpusRow.name)
        .join(CorpusVersionRow, CorpusVersionRow.corpus_id == CorpusRow.id)
        .where(CorpusVersionRow.id == cartridge.corpus_version_id)
    )
    return f"{corpus}/{cartridge.digest}"


def aliases_at(session: Session, cartridge: CartridgeRow) -> list[str]:
    """Names of the aliases that point at a Cartridge."""
    return list(
        session.scalars(
            select(AliasRow.name)
            .where(AliasRow.tenant == cartridge.tenant, AliasRow.cartridge_id == cartridge.id)
            .order_by(AliasRow.name)
        )
    )


def refuse_if_aliased(session: Session, cartridge: CartridgeRow, action: str) -> None:
    """Refuse to take away what is being served.

    Raises:
        CatalogError: An alias points at it.
    """
    aliases = aliases_at(session, cartridge)
    if aliases:
        raise CatalogError(
            f"Cannot {action} Cartridge {cartridge.digest[:12]}: the alias {', '.join(aliases)} points at it.",
            "Promote another one or roll back first.",
        )
