"""Deleting a Cartridge: a tombstone stays, the files go."""

from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from cartridge_core.catalog import (
    CatalogEntry,
    Status,
    catalog_session,
    clear_alias,
    find_cartridge,
    record_tombstone,
)
from cartridge_core.catalog.cartridges import cartridge_row
from cartridge_core.catalog.models import CartridgeRow, EvaluationRow
from cartridge_core.catalog.statuses import hold, refuse_if_aliased, statuses_of
from cartridge_core.publishing.artifact import MANIFEST_FILE
from cartridge_core.publishing.drift import project_alias
from cartridge_core.registry import erase_version
from cartridge_core.report import REPORT_FILE
from cartridge_core.settings import Settings
from cartridge_core.storage import ObjectStore, delete_folder, open_store


@dataclass(frozen=True)
class Erasure:
    """What a deletion did."""

    entry: CatalogEntry
    """The Cartridge as it was before."""
    cleared_aliases: tuple[str, ...]
    """Aliases that pointed at it and are gone."""
    removed: tuple[str, ...]
    """Addresses of the files and folders that were removed."""


def delete(
    settings: Settings, corpus: str, reference: str, *, force: bool = False, reason: str = "", actor: str = ""
) -> Erasure:
    """Remove a Cartridge's files, reports and MLflow version; a tombstone in the catalog says so for good.

    The tombstone comes first, so that nothing half erased is ever served; after an interruption, deleting again
    removes what is left. Files that another corpus of the tenant shares stay until that one is deleted too. Corpora,
    conversations and finished work of the stages are not touched.

    Args:
        settings: Names the stores and the tenant.
        corpus: Name of the corpus.
        reference: A version, an alias or the start of a digest.
        force: Delete it although an alias points at it; the alias goes, and nothing is served under it.
        reason: Why, for the record.
        actor: Who asks, for the record.

    Raises:
        NotFoundError: There is no such corpus or Cartridge.
        CatalogError: An alias points at it and `force` is off.
        StorageError, RegistryError: A store refuses; deleting again goes on.
    """
    store = open_store(settings.artifact_root)
    with catalog_session(settings) as session:
        entry = find_cartridge(session, settings.tenant, corpus, reference)
        row = cartridge_row(session, settings.tenant, entry.cartridge_id)
        hold(session, row)
        # Whoever held it before may have promoted it.
        entry = find_cartridge(session, settings.tenant, corpus, entry.digest)
        if not force:
            refuse_if_aliased(session, row, "delete")
        folders = _folders(session, row, entry)
        if entry.status is not Status.DELETED:
            for alias in entry.aliases:
                clear_alias(session, settings.tenant, corpus, alias, reason=reason or "deleted", actor=actor)
            planned = [store.url(key) for folder, _ in folders for key in store.list(folder)]
            record_tombstone(session, row, planned, reason=reason, actor=actor)
    removed = _remove(store, folders)
    if entry.model_name is not None and entry.version is not None and entry.model_id is not None:
        for alias in entry.aliases:
            project_alias(settings, corpus, alias)
        removed += erase_version(settings, entry.model_name, entry.version, entry.model_id, entry.digest)
    return Erasure(entry, entry.aliases, removed)


def _folders(session: Session, row: CartridgeRow, entry: CatalogEntry) -> list[tuple[str, str]]:
    """Folders of the store that only this Cartridge needs, each with its commit marker."""
    if entry.artifact_key is None:
        return []
    same = list(
        session.scalars(
            select(CartridgeRow.id).where(
                CartridgeRow.tenant == row.tenant, CartridgeRow.digest == row.digest, CartridgeRow.id != row.id
            )
        )
    )
    if any(status is not Status.DELETED for status in statuses_of(session, row.tenant, same).values()):
        return []
    reports = session.scalars(
        select(EvaluationRow.report_key)
        .where(EvaluationRow.tenant == row.tenant, EvaluationRow.cartridge_id.in_([row.id, *same]))
        .distinct()
    )
    return [(entry.artifact_key, MANIFEST_FILE), *((key, REPORT_FILE) for key in sorted(reports))]


def _remove(store: ObjectStore, folders: list[tuple[str, str]]) -> tuple[str, ...]:
    return tuple(store.url(key) for folder, marker in folders for key in delete_folder(store, folder, marker))
