"""MLflow against the catalog: versions without a row, rows without a version, aliases that disagree."""

from collections.abc import Iterator

from cartridge_core.catalog import CatalogEntry, Status
from cartridge_core.errors import ArtifactError
from cartridge_core.publishing import CorpusSource, find_drift, project_alias, register_cartridge
from cartridge_core.publishing.artifact import cartridge_key, read_artifact
from cartridge_core.registry import erase_version
from cartridge_core.registry.listing import ListedVersion, drop_version
from cartridge_core.upkeep.copies import good_copy
from cartridge_core.upkeep.stores import Stores
from cartridge_core.upkeep.trouble import Trouble


def versions_without_row(stores: Stores) -> Iterator[Trouble]:
    """Versions in MLflow that the catalog does not list: of an interrupted registration or deletion, or by hand."""
    known = {(entry.model_name, entry.version) for entry in stores.live}
    by_digest = {(entry.corpus, entry.digest): entry for entry in reversed(stores.entries)}
    for version in stores.versions:
        if (version.name, version.version) in known or not stores.old(version.created_at):
            continue
        subject = f"{version.name} v{version.version}"
        if version.digest is None:
            yield Trouble(
                "versions", subject, "MLflow has a version that nobody registered here.", "Delete it in MLflow."
            )
            continue
        entry = by_digest.get((version.corpus, version.digest))
        if entry is None:
            yield _adoptable(stores, version, subject)
        elif entry.status is Status.DELETED:
            yield Trouble(
                "versions",
                subject,
                f"MLflow has a version of Cartridge {version.digest[:12]}, which was deleted.",
                "Erased in MLflow too.",
                lambda version=version: _erase(stores, version),  # type: ignore[misc]
            )
        else:
            yield Trouble(
                "versions",
                subject,
                f"MLflow has a second version of Cartridge {version.digest[:12]}; the catalog has v{entry.version}.",
                "The second one is removed.",
                lambda version=version: drop_version(stores.settings, version.name, version.version),  # type: ignore[misc]
            )


def rows_without_version(stores: Stores) -> Iterator[Trouble]:
    """Catalog rows whose version MLflow does not have."""
    there = {(version.name, version.version) for version in stores.versions}
    for entry in stores.live:
        if (entry.model_name, entry.version) in there:
            continue
        what = f"{entry.model_name} v{entry.version}" if entry.model_name else "no version"
        yield Trouble(
            "rows",
            f"{entry.corpus}/{entry.digest[:12]}",
            f"The catalog names {what}, which MLflow does not have.",
            "Registered again from its files.",
            lambda entry=entry: _register(stores, entry),  # type: ignore[misc]
        )


def aliases(stores: Stores) -> Iterator[Trouble]:
    """Aliases that MLflow shows otherwise than the catalog, which is the truth."""
    for drift in find_drift(stores.settings):
        yield Trouble(
            "aliases",
            f"{drift.corpus}@{drift.alias}",
            f"MLflow shows {_version(drift.mlflow_version)} of {drift.model_name}, "
            f"the catalog has {_version(drift.catalog_version)}.",
            "MLflow shows the catalog's.",
            lambda drift=drift: _project(stores, drift.corpus, drift.alias),  # type: ignore[misc]
        )


def _adoptable(stores: Stores, version: ListedVersion, subject: str) -> Trouble:
    digest = str(version.digest)
    problem = f"MLflow has a version of Cartridge {digest[:12]} that the catalog does not list."
    settings, files = stores.settings, stores.files
    with good_copy(settings, files, cartridge_key(settings.tenant, digest), digest, version.model_id) as folder:
        corpus_digest = None if folder is None else read_artifact(folder, settings.tenant).manifest.corpus_digest
    if corpus_digest is None:
        # A Cartridge that does not say what it stands in for cannot be listed under a version of the corpus.
        return Trouble("versions", subject, problem, "Register it again, or delete the version in MLflow.")

    def adopt() -> None:
        key = cartridge_key(settings.tenant, digest)
        with good_copy(settings, files, key, digest, version.model_id) as folder:
            if folder is None:
                raise ArtifactError(f"No good copy of Cartridge {digest[:12]} is left.", "Build it again.")
            source = CorpusSource(version.corpus, corpus_digest)
            register_cartridge(settings, folder, source, actor=stores.actor)

    return Trouble("versions", subject, problem, "Its registration is completed.", adopt)


def _register(stores: Stores, entry: CatalogEntry) -> None:
    with good_copy(stores.settings, stores.files, entry.artifact_key, entry.digest, entry.model_id) as folder:
        if folder is None:
            raise ArtifactError(
                f"No good copy of Cartridge {entry.digest[:12]} is left.",
                f"Build it again, or `cartridge delete {entry.corpus} {entry.digest[:12]}`.",
            )
        source = CorpusSource(entry.corpus, entry.corpus_digest)
        register_cartridge(stores.settings, folder, source, actor=stores.actor)
    for alias in entry.aliases:
        project_alias(stores.settings, entry.corpus, alias)


def _erase(stores: Stores, version: ListedVersion) -> None:
    erase_version(stores.settings, version.name, version.version, version.model_id, str(version.digest))


def _project(stores: Stores, corpus: str, alias: str) -> None:
    project_alias(stores.settings, corpus, alias)


def _version(number: int | None) -> str:
    return "nothing" if number is None else f"v{number}"
