"""Aliases in MLflow against the catalog's, which are the truth."""

from dataclasses import dataclass

from sqlalchemy.orm import Session

from cartridge_core.catalog import catalog_session, list_cartridges, list_corpora
from cartridge_core.registry import alias_targets, clear_alias, set_alias
from cartridge_core.settings import Settings


@dataclass(frozen=True)
class AliasDrift:
    """An alias that MLflow shows otherwise than the catalog has it. What MLflow shows is never served."""

    corpus: str
    alias: str
    model_name: str
    """Registered model in MLflow."""
    catalog_version: int | None
    """Version that the catalog's alias points at; None when it points at no version of this model."""
    mlflow_version: int | None
    """Version that MLflow's alias points at; None when there is none."""


def find_drift(settings: Settings, corpus: str | None = None) -> list[AliasDrift]:
    """What MLflow shows otherwise than the catalog has it, for one corpus or for all.

    Raises:
        RegistryError, CatalogError: A store cannot be reached.
    """
    with catalog_session(settings, read_only=True) as session:
        names = [corpus] if corpus is not None else [entry.name for entry in list_corpora(session, settings.tenant)]
        truth = {name: _truth(session, settings.tenant, name) for name in names}
    found = []
    for name, ours in truth.items():
        theirs = alias_targets(settings, name)
        found += [
            AliasDrift(name, alias, model, ours.get((model, alias)), theirs.get((model, alias)))
            for model, alias in sorted(ours.keys() | theirs.keys())
            if ours.get((model, alias)) != theirs.get((model, alias))
        ]
    return found


def project_alias(settings: Settings, corpus: str, alias: str) -> list[AliasDrift]:
    """Make MLflow show an alias of a corpus as the catalog has it.

    Returns:
        What was different.

    Raises:
        RegistryError, CatalogError: A store cannot be reached or refuses.
    """
    different = [drift for drift in find_drift(settings, corpus) if drift.alias == alias]
    for drift in different:
        if drift.catalog_version is None:
            clear_alias(settings, drift.model_name, alias)
        else:
            set_alias(settings, drift.model_name, alias, drift.catalog_version)
    return different


def _truth(session: Session, tenant: str, corpus: str) -> dict[tuple[str, str], int]:
    return {
        (entry.model_name, alias): entry.version
        for entry in list_cartridges(session, tenant, corpus)
        for alias in entry.aliases
        if entry.model_name is not None and entry.version is not None
    }
