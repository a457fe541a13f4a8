"""The doctor: three stores, one truth; what disagrees is found and, where that can be done safely, set right."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from cartridge_core.catalog import Action, catalog_session, record_event
from cartridge_core.errors import CartridgeError, SettingsError
from cartridge_core.progress import Progress, no_progress
from cartridge_core.settings import Settings
from cartridge_core.upkeep import artifact_checks, registry_checks
from cartridge_core.upkeep.stores import Stores
from cartridge_core.upkeep.trouble import Trouble

CHECKS: dict[str, Callable[[Stores], Iterable[Trouble]]] = {
    "files": artifact_checks.missing_files,
    "digests": artifact_checks.damaged_files,
    "reports": artifact_checks.missing_reports,
    "rows": registry_checks.rows_without_version,
    "versions": registry_checks.versions_without_row,
    "aliases": registry_checks.aliases,
    "orphans": artifact_checks.orphans,
    "uploads": artifact_checks.uploads,
}
"""Every check by name, in an order in which what an earlier repair does is of use to a later one."""


@dataclass(frozen=True)
class Diagnosis:
    """One trouble and what became of it."""

    trouble: Trouble
    repaired: bool = False
    """Whether it is right now."""
    error: str | None = None
    """Why the repair failed."""

    def as_json(self) -> dict[str, Any]:
        """The diagnosis as JSON values."""
        trouble = self.trouble
        return {
            "check": trouble.check,
            "subject": trouble.subject,
            "problem": trouble.problem,
            "remedy": trouble.remedy,
            "repairable": trouble.repair is not None,
            "repaired": self.repaired,
            "error": self.error,
        }


def examine(
    settings: Settings,
    checks: Collection[str] = (),
    *,
    repair: bool = False,
    grace: timedelta = timedelta(hours=1),
    progress: Progress = no_progress,
    actor: str = "",
) -> list[Diagnosis]:
    """Look for everything on which catalog, artifact store and MLflow disagree, for the settings' tenant.

    Args:
        settings: Names the stores and the tenant.
        checks: Names of `CHECKS`; all where nobody says.
        repair: Set right what can be.
        grace: What is younger may be work that goes on: it is left alone.
        progress: Told about checks and about files that are read.
        actor: Who asks, for the record.

    Raises:
        SettingsError: There is no such check.
        StorageError, RegistryError, CatalogError: A store cannot be reached, so that nothing can be said.
    """
    if unknown := set(checks) - set(CHECKS):
        raise SettingsError(f"There is no check {min(unknown)!r}.", f"Choose from {', '.join(CHECKS)}.")
    stores = Stores(settings, grace, progress, actor)
    wanted = [name for name in CHECKS if not checks or name in checks]
    found = []
    for number, name in enumerate(wanted):
        progress(number, len(wanted), f"checking {name}")
        troubles = [Diagnosis(trouble) for trouble in CHECKS[name](stores)]
        if repair and any(diagnosis.trouble.repair for diagnosis in troubles):
            troubles = [_repaired(stores, diagnosis) for diagnosis in troubles]
            # Later checks shall see the stores as they are now.
            stores = Stores(settings, grace, progress, actor)
        found += troubles
    progress(len(wanted), len(wanted), "checked")
    return found


def _repaired(stores: Stores, diagnosis: Diagnosis) -> Diagnosis:
    trouble = diagnosis.trouble
    if trouble.repair is None:
        return diagnosis
    try:
        trouble.repair()
    except CartridgeError as error:
        return replace(diagnosis, error=str(error))
    with catalog_session(stores.settings) as session:
        details = {"check": trouble.check, "problem": trouble.problem}
        record_event(
            session, stores.settings.tenant, Action.REPAIR, trouble.subject, actor=stores.actor, details=details
        )
    return replace(diagnosis, repaired=True)
