"""Retiring a Cartridge: nobody can promote it again, its files stay until they are collected."""

from cartridge_core.catalog import CatalogEntry, catalog_session, find_cartridge
from cartridge_core.catalog import retire as retire_row
from cartridge_core.catalog.cartridges import cartridge_row
from cartridge_core.settings import Settings


def retire(settings: Settings, corpus: str, reference: str, reason: str = "", actor: str = "") -> CatalogEntry:
    """Retire a Cartridge in the catalog.

    Returns:
        It as it is now.

    Raises:
        NotFoundError: There is no such corpus or Cartridge.
        CatalogError: An alias points at it, or it was deleted.
    """
    with catalog_session(settings) as session:
        entry = find_cartridge(session, settings.tenant, corpus, reference)
        row = cartridge_row(session, settings.tenant, entry.cartridge_id)
        retire_row(session, row, reason=reason, actor=actor)
        return find_cartridge(session, settings.tenant, corpus, entry.digest)
