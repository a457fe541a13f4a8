"""The catalog: which Cartridges there are for which corpora, what happened to them, and which are served.

Functions take an open session (`catalog_session`) and the tenant they act for; they never see another tenant's rows.
"""

from cartridge_core.catalog.aliases import CHAMPION, AliasChange, alias_history, clear_alias, resolve, set_alias
from cartridge_core.catalog.audit import Action, AuditEvent, list_events, record_event
from cartridge_core.catalog.base_models import record_base_model
from cartridge_core.catalog.cartridges import (
    find_cartridge,
    find_version,
    list_cartridges,
    list_gone,
    list_served,
    manifest_of,
    record_cartridge,
)
from cartridge_core.catalog.compositions import (
    CompositionEntry,
    composition_digest,
    find_composition,
    record_composition,
)
from cartridge_core.catalog.corpora import list_corpora, record_corpus
from cartridge_core.catalog.datasets import record_dataset
from cartridge_core.catalog.entry import CatalogEntry
from cartridge_core.catalog.evaluations import record_evaluation
from cartridge_core.catalog.pins import list_pins, pinned_digests, record_pin
from cartridge_core.catalog.registrations import Whereabouts, record_registration
from cartridge_core.catalog.retirement import retire
from cartridge_core.catalog.session import Catalog, SchemaUpgrade, catalog_session, upgrade_catalog
from cartridge_core.catalog.statuses import Status, change_status, status_of
from cartridge_core.catalog.tombstones import record_tombstone

__all__ = [
    "CHAMPION",
    "Action",
    "AliasChange",
    "AuditEvent",
    "Catalog",
    "CatalogEntry",
    "CompositionEntry",
    "SchemaUpgrade",
    "Status",
    "Whereabouts",
    "alias_history",
    "catalog_session",
    "change_status",
    "clear_alias",
    "composition_digest",
    "find_cartridge",
    "find_composition",
    "find_version",
    "list_cartridges",
    "list_corpora",
    "list_events",
    "list_gone",
    "list_pins",
    "list_served",
    "manifest_of",
    "pinned_digests",
    "record_base_model",
    "record_cartridge",
    "record_composition",
    "record_corpus",
    "record_dataset",
    "record_evaluation",
    "record_event",
    "record_pin",
    "record_registration",
    "record_tombstone",
    "resolve",
    "retire",
    "set_alias",
    "status_of",
    "upgrade_catalog",
]
