"""Deleting a Cartridge everywhere: what is served, what is registered, and the local copies of it."""

from __future__ import annotations

from cartridge_core.publishing import Erasure, delete
from cartridge_core.settings import Settings
from cartridge_core.stages.ingest import store_of
from cartridge_core.stages.local_copies import LocalCopies


def erase(
    settings: Settings, corpus: str, reference: str, force: bool = False, reason: str = "", actor: str = ""
) -> Erasure:
    """Delete a Cartridge from catalog, registry and artifact store, then its copies on this machine.

    The corpus and its study stay: they are the user's, and other Cartridges come from them.

    Raises:
        NotFoundError: There is no such corpus or Cartridge.
        CatalogError: An alias points at it and `force` is off.
    """
    erasure = delete(settings, corpus, reference, force=force, reason=reason, actor=actor)
    digest = erasure.entry.digest
    store = store_of(settings)
    for stage, fact in (("fit", "digest"), ("grade", "cartridge")):
        for product in store.finished(stage):
            if product.facts[fact] == digest:
                store.forget(product)
    for product in store.finished("composition"):
        if digest in product.facts["cartridges"]:
            store.forget(product)
    LocalCopies(settings).discard(digest)
    return erasure
