"""The three stores side by side, as they were at one moment."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property

from sqlalchemy import func, select

from cartridge_core.catalog import CatalogEntry, Status, catalog_session, list_cartridges, pinned_digests
from cartridge_core.catalog.models import EvaluationRow, StatusChangeRow
from cartridge_core.progress import Progress, no_progress
from cartridge_core.registry.listing import ListedVersion, list_versions
from cartridge_core.settings import Settings
from cartridge_core.storage import ObjectStore, open_store


@dataclass(frozen=True)
class Stores:
    """Catalog, artifact store and MLflow of one tenant. What it says is read once, when it is first asked for."""

    settings: Settings
    """Names them and the tenant."""
    grace: timedelta = timedelta(hours=1)
    """What is younger may be somebody's work that goes on just now: it is left alone."""
    progress: Progress = no_progress
    """Told about long checks."""
    actor: str = ""
    """Who asks, for the record."""

    @cached_property
    def files(self) -> ObjectStore:
        """The artifact store."""
        return open_store(self.settings.artifact_root)

    @cached_property
    def now(self) -> datetime:
        """The moment of the first question."""
        return datetime.now(UTC)

    @cached_property
    def entries(self) -> list[CatalogEntry]:
        """Every Cartridge of the catalog, deleted ones too, the newest first."""
        with catalog_session(self.settings, read_only=True) as session:
            return list_cartridges(session, self.settings.tenant, include_deleted=True)

    @cached_property
    def live(self) -> list[CatalogEntry]:
        """Those that were not deleted."""
        return [entry for entry in self.entries if entry.status is not Status.DELETED]

    @cached_property
    def pinned(self) -> frozenset[str]:
        """Digests of Cartridges that gateways keep in memory."""
        with catalog_session(self.settings, read_only=True) as session:
            return pinned_digests(session, self.settings.tenant)

    @cached_property
    def status_since(self) -> dict[int, datetime]:
        """When each Cartridge got its present status, by the number of its row."""
        with catalog_session(self.settings, read_only=True) as session:
            rows = session.execute(
                select(StatusChangeRow.cartridge_id, func.max(StatusChangeRow.created_at))
                .where(StatusChangeRow.tenant == self.settings.tenant)
                .group_by(StatusChangeRow.cartridge_id)
            )
            return dict(rows.tuples().all())

    @cached_property
    def reports(self) -> dict[str, set[int]]:
        """Cartridges by the folder of each report about them."""
        with catalog_session(self.settings, read_only=True) as session:
            rows = session.execute(
                select(EvaluationRow.report_key, EvaluationRow.cartridge_id).where(
                    EvaluationRow.tenant == self.settings.tenant
                )
            ).tuples()
            found: dict[str, set[int]] = defaultdict(set)
            for key, cartridge_id in rows:
                found[key].add(cartridge_id)
            return found

    @cached_property
    def versions(self) -> list[ListedVersion]:
        """Every version in MLflow."""
        return list_versions(self.settings)

    @cached_property
    def folders(self) -> dict[str, set[str]]:
        """Names of the files in each folder of Cartridges and reports in the artifact store."""
        found: dict[str, set[str]] = defaultdict(set)
        for kind in ("cartridges", "reports"):
            for key in self.files.list(f"{self.settings.tenant}/{kind}"):
                folder, _, name = key.rpartition("/")
                found[folder].add(name)
        return found

    def old(self, moment: datetime) -> bool:
        """Whether something of that moment is past the grace period."""
        return self.now - moment >= self.grace

    def folder_is_old(self, folder: str) -> bool:
        """Whether nothing was written into a folder of the artifact store lately."""
        return all(self.old(self.files.modified_at(f"{folder}/{name}")) for name in self.folders[folder])
