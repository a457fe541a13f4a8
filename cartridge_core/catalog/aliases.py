"""Aliases: which Cartridge serves a corpus. The truth about what is served."""

import functools
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import BindParameter, bindparam, select
from sqlalchemy.orm import Session

from cartridge_core.catalog.audit import Action, record_event
from cartridge_core.catalog.base import NAME
from cartridge_core.catalog.cartridges import cartridge_row
from cartridge_core.catalog.corpora import require_corpus
from cartridge_core.catalog.entry import CatalogEntry, EntrySelect, entries_of, entry_rows
from cartridge_core.catalog.insertion import add_once
from cartridge_core.catalog.models import AliasChangeRow, AliasRow, CartridgeRow, CorpusRow, CorpusVersionRow
from cartridge_core.catalog.statuses import Status, change_status, hold, status_of
from cartridge_core.errors import CatalogError, NotFoundError, SettingsError
from cartridge_core.settings import valid_name

CHAMPION = "champion"
"""The alias that is served where nobody names another."""

PROMOTE, ROLLBACK, CLEAR = "promote", "rollback", "clear"


@dataclass(frozen=True)
class AliasChange:
    """A move of an alias."""

    action: str
    """promote, rollback or clear."""
    cartridge_id: int | None
    """Where it points since; None when it was cleared."""
    reason: str
    actor: str
    created_at: datetime


def valid_alias(name: str) -> str:
    """A name that both the catalog and MLflow accept for an alias.

    Raises:
        SettingsError: It does not match `[a-z0-9-]{1,63}`, or MLflow keeps it for itself (`latest`, `v1`).
    """
    if name == "latest" or re.fullmatch(r"v\d+", name):
        raise SettingsError(
            f"{name!r} cannot be an alias: MLflow keeps it for itself.", "Use another, such as `canary`."
        )
    if re.fullmatch(r"\d{1,5}|[0-9a-f]{6,}", name):
        raise SettingsError(
            f"{name!r} cannot be an alias: it looks like a version or a digest.", "Use a word, such as `canary`."
        )
    return valid_name(name, "alias")


@functools.cache
def aliased_rows() -> EntrySelect:
    """What `resolve` asks, with parameters `tenant`, `corpus` and `alias`; built once, for a gateway asks it often."""
    tenant: BindParameter[str] = bindparam("tenant", type_=NAME)
    return (
        entry_rows(tenant)
        .join(AliasRow, (AliasRow.cartridge_id == CartridgeRow.id) & (AliasRow.corpus_id == CorpusRow.id))
        .where(CorpusRow.tenant == tenant, CorpusRow.name == bindparam("corpus", type_=NAME))
        .where(AliasRow.tenant == tenant, AliasRow.name == bindparam("alias", type_=NAME))
    )


def resolve(session: Session, tenant: str, corpus: str, alias: str = CHAMPION) -> CatalogEntry:
    """The Cartridge that an alias of a corpus points at.

    Raises:
        NotFoundError: There is no such corpus or alias.
    """
    found = entries_of(session, tenant, aliased_rows(), {"tenant": tenant, "corpus": corpus, "alias": alias})
    if not found:
        require_corpus(session, tenant, corpus)
        raise NotFoundError(
            f"Corpus {corpus!r} has no alias {alias!r}.", f"Promote a Cartridge: `cartridge promote {corpus}`."
        )
    return found[0]


def set_alias(
    session: Session,
    tenant: str,
    corpus: str,
    alias: str,
    cartridge_id: int,
    *,
    action: str = PROMOTE,
    reason: str = "",
    actor: str = "",
) -> bool:
    """Point an alias of a corpus at one of its Cartridges and write that down.

    Returns:
        Whether it moved; False when it pointed there already.

    Raises:
        CatalogError: The Cartridge belongs to another corpus, or was retired or deleted.
        NotFoundError: There is no such corpus or Cartridge.
        SettingsError: The alias cannot be used as a name.
    """
    valid_alias(alias)
    owner = require_corpus(session, tenant, corpus)
    cartridge = cartridge_row(session, tenant, cartridge_id)
    version = session.get_one(CorpusVersionRow, cartridge.corpus_version_id)
    if version.corpus_id != owner.id:
        raise CatalogError(f"Cartridge {cartridge.digest[:12]} is not of corpus {corpus!r}.", "Name its own corpus.")
    hold(session, cartridge)
    if (status := status_of(session, cartridge)) in (Status.RETIRED, Status.DELETED):
        raise CatalogError(f"Cartridge {cartridge.digest[:12]} is {status}.", "Promote another one.")
    # The row is locked where the database can, so that two promotions are written down in the order they took place.
    place = select(AliasRow).where(AliasRow.tenant == tenant, AliasRow.corpus_id == owner.id, AliasRow.name == alias)
    made = AliasRow(tenant=tenant, corpus_id=owner.id, name=alias, cartridge_id=cartridge_id)
    row = add_once(session, lambda: session.scalar(place.with_for_update()), lambda: made)
    if row is not made:
        if row.cartridge_id == cartridge_id:
            return False
        row.cartridge_id = cartridge_id
    _write_down(session, row, corpus, action, cartridge_id, reason, actor)
    change_status(session, cartridge, Status.PUBLISHED, reason=reason, actor=actor)
    return True


def clear_alias(session: Session, tenant: str, corpus: str, alias: str, *, reason: str = "", actor: str = "") -> bool:
    """Take an alias away from a corpus and write that down.

    Returns:
        Whether there was one.
    """
    owner = require_corpus(session, tenant, corpus)
    row = session.scalar(
        select(AliasRow).where(AliasRow.tenant == tenant, AliasRow.corpus_id == owner.id, AliasRow.name == alias)
    )
    if row is None:
        return False
    _write_down(session, row, corpus, CLEAR, None, reason, actor)
    session.delete(row)
    session.flush()
    return True


def alias_history(session: Session, tenant: str, corpus: str, alias: str = CHAMPION) -> list[AliasChange]:
    """All moves of an alias, the oldest first.

    Raises:
        NotFoundError: There is no such corpus.
    """
    owner = require_corpus(session, tenant, corpus)
    rows = session.scalars(
        select(AliasChangeRow)
        .where(AliasChangeRow.tenant == tenant, AliasChangeRow.corpus_id == owner.id, AliasChangeRow.name == alias)
        .order_by(AliasChangeRow.id)
    )
    return [AliasChange(row.action, row.cartridge_id, row.reason, row.actor, row.created_at) for row in rows]


def previous_target(history: Sequence[AliasChange], usable: Collection[int]) -> int | None:
    """Where a rollback leads: a pure function of the alias's history.

    Promotions pile up and rollbacks take them off again, so that a second rollback goes one further back and never
    returns to what the first one left.

    Args:
        history: The alias's moves, the oldest first.
        usable: Cartridges that may still be served.

    Returns:
        The Cartridge, or None when there is nothing to go back to.
    """
    pile: list[int | None] = []
    for change in history:
        if change.action == ROLLBACK:
            while pile and pile[-1] != change.cartridge_id:
                pile.pop()
        else:
            pile.append(change.cartridge_id)
    current = pile.pop() if pile else None
    for target in reversed(pile):
        if target is not None and target != current and target in usable:
            return target
    return None


def _write_down(
    session: Session, alias: AliasRow, corpus: str, action: str, cartridge_id: int | None, reason: str, actor: str
) -> None:
    session.add(
        AliasChangeRow(
            tenant=alias.tenant,
            corpus_id=alias.corpus_id,
            name=alias.name,
            action=action,
            cartridge_id=cartridge_id,
            reason=reason,
            actor=actor,
        )
    )
    details = {"cartridge_id": cartridge_id, "reason": reason}
    record_event(session, alias.tenant, Action(action), f"{corpus}@{alias.name}", actor=actor, details=details)
