"""Good copies of a Cartridge, wherever one is left."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from cartridge_core.catalog import CatalogEntry
from cartridge_core.errors import ArtifactError, PublishingError, StorageError
from cartridge_core.publishing.artifact import CARTRIDGE_FILES, read_artifact
from cartridge_core.registry.listing import fetch_files
from cartridge_core.settings import Settings
from cartridge_core.stages.fit import CARTRIDGE
from cartridge_core.stages.ingest import store_of
from cartridge_core.stages.local_copies import LocalCopies
from cartridge_core.storage import ObjectStore, get_folder


def damage(settings: Settings, folder: Path, digest: str) -> str | None:
    """What is wrong with a copy; None for a good one."""
    try:
        artifact = read_artifact(folder, settings.tenant)
    except (ArtifactError, PublishingError) as error:
        return error.problem
    found = artifact.manifest.digest
    return None if found == digest else f"It is Cartridge {found[:12]}, not {digest[:12]}."


def stored_damage(settings: Settings, store: ObjectStore, key: str, digest: str) -> str | None:
    """What is wrong with the copy in the artifact store; every byte is read."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            get_folder(store, key, Path(folder), CARTRIDGE_FILES)
        except StorageError as error:
            return error.problem
        return damage(settings, Path(folder), digest)


@contextmanager
def good_copy(
    settings: Settings, store: ObjectStore, entry_key: str | None, digest: str, model_id: str | None
) -> Iterator[Path | None]:
    """A folder with a verified copy, from the artifact store, this machine's own work or MLflow; None if all are lost.

    Args:
        settings: Names the stores.
        store: The artifact store.
        entry_key: Folder in it; None not to look there.
        digest: The Cartridge's.
        model_id: MLflow's logged model; None not to look there.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "copy")
        for bring in (
            lambda: entry_key is not None and _from_store(store, entry_key, folder),
            lambda: _from_work(settings, digest, folder),
            lambda: model_id is not None and fetch_files(settings, model_id, folder),
        ):
            shutil.rmtree(folder, ignore_errors=True)
            if bring() and damage(settings, folder, digest) is None:
                yield folder
                return
        yield None


def has_good_copy(settings: Settings, store: ObjectStore, entry: CatalogEntry) -> bool:
    """Whether a copy outside the artifact store is good."""
    with good_copy(settings, store, None, entry.digest, entry.model_id) as folder:
        return folder is not None


def _from_store(store: ObjectStore, key: str, folder: Path) -> bool:
    try:
        get_folder(store, key, folder, CARTRIDGE_FILES)
    except StorageError:
        return False
    return True


def _from_work(settings: Settings, digest: str, folder: Path) -> bool:
    trained = [p.directory / CARTRIDGE for p in store_of(settings).finished("fit") if p.facts["digest"] == digest]
    with LocalCopies(settings).hold(digest) or nullcontext() as held:
        for place in (*(() if held is None else (held.folder,)), *trained):
            if damage(settings, place, digest) is None:
                folder.mkdir(parents=True)
                for name in CARTRIDGE_FILES:
                    shutil.copyfile(place / name, folder / name)
                return True
    return False
