"""The artifact store against the catalog: what is missing, damaged, left over."""

from collections.abc import Iterator

from cartridge_core.catalog import CatalogEntry
from cartridge_core.errors import StorageError
from cartridge_core.publishing.artifact import CARTRIDGE_FILES, MANIFEST_FILE, REPORT_FILES, cartridge_key, report_key
from cartridge_core.report import REPORT_FILE
from cartridge_core.stages.ingest import store_of
from cartridge_core.storage import delete_folder, put_folder
from cartridge_core.upkeep.copies import good_copy, has_good_copy, stored_damage
from cartridge_core.upkeep.stores import Stores
from cartridge_core.upkeep.trouble import Trouble


def missing_files(stores: Stores) -> Iterator[Trouble]:
    """Catalog rows whose files are not in the store."""
    for key, entry in _by_folder(stores).items():
        gone = [name for name in CARTRIDGE_FILES if name not in stores.folders.get(key, ())]
        if gone:
            yield _restorable(stores, "files", key, entry, f"{', '.join(gone)} of {_of(entry)} missing.")


def missing_reports(stores: Stores) -> Iterator[Trouble]:
    """Evaluations whose report is not in the store."""
    live = {entry.cartridge_id for entry in stores.live}
    made = {product.facts["digest"]: product for product in store_of(stores.settings).finished("grade")}
    for key, cartridges in stores.reports.items():
        if not cartridges & live or stores.folders.get(key, set()) >= set(REPORT_FILES):
            continue
        product = made.get(key.rpartition("/")[2])

        def restore(key: str = key) -> None:
            put_folder(stores.files, made[key.rpartition("/")[2]].directory, key, REPORT_FILES)

        yield Trouble(
            "reports",
            key,
            "The files of this report are missing; the gate cannot judge by it.",
            "Stored again from this machine's own work." if product else "Grade the Cartridge again.",
            restore if product else None,
        )


def damaged_files(stores: Stores) -> Iterator[Trouble]:
    """Stored Cartridges that are not what the catalog vouches for. Every byte is read."""
    complete = [
        (key, entry)
        for key, entry in _by_folder(stores).items()
        if set(CARTRIDGE_FILES) <= stores.folders.get(key, set())
    ]
    for number, (key, entry) in enumerate(complete):
        stores.progress(number, len(complete), "reading stored Cartridges")
        wrong = stored_damage(stores.settings, stores.files, key, entry.digest)
        if wrong is not None:
            yield _restorable(stores, "digests", key, entry, f"The stored copy of {_of(entry)} is damaged: {wrong}")
    stores.progress(len(complete), len(complete), "reading stored Cartridges")


def orphans(stores: Stores) -> Iterator[Trouble]:
    """Files that no row of the catalog needs: of an interrupted registration or an interrupted deletion."""
    tenant = stores.settings.tenant
    live = {entry.cartridge_id for entry in stores.live}
    needed = set(_by_folder(stores)) | {key for key, cartridges in stores.reports.items() if cartridges & live}
    # Whatever a row says, files under the digest of a live Cartridge are its own.
    needed |= {cartridge_key(tenant, entry.digest) for entry in stores.live}
    for folder in sorted(stores.folders.keys() - needed):
        name = folder.rpartition("/")[2]
        markers = {cartridge_key(tenant, name): MANIFEST_FILE, report_key(tenant, name): REPORT_FILE}
        if folder not in markers or not stores.folder_is_old(folder):
            continue

        def remove(folder: str = folder, marker: str = markers[folder]) -> None:
            delete_folder(stores.files, folder, marker)

        yield Trouble("orphans", folder, "No row of the catalog needs these files.", "Removed.", remove)


def uploads(stores: Stores) -> Iterator[Trouble]:
    """What killed writers left: parts of uploads, temporary files."""
    for left in stores.files.unfinished():
        if stores.old(left.started_at):
            yield Trouble(
                "uploads",
                left.key,
                f"A writer was killed and left {left.size:,} bytes on {left.started_at:%Y-%m-%d %H:%M}.",
                "Given up.",
                lambda left=left: stores.files.abandon(left),  # type: ignore[misc]
            )


def _by_folder(stores: Stores) -> dict[str, CatalogEntry]:
    """A live Cartridge of each folder; corpora may share one."""
    return {entry.artifact_key: entry for entry in stores.live if entry.artifact_key is not None}


def _restorable(stores: Stores, check: str, key: str, entry: CatalogEntry, problem: str) -> Trouble:
    settings, files = stores.settings, stores.files
    if not has_good_copy(settings, files, entry):
        remedy = f"No good copy is left: build it again, or `cartridge delete {entry.corpus} {entry.digest[:12]}`."
        return Trouble(check, key, problem, remedy)

    def restore() -> None:
        with good_copy(settings, files, None, entry.digest, entry.model_id) as folder:
            if folder is None:
                raise StorageError(f"The good copy of {_of(entry)} is gone meanwhile.", "Build it again.")
            put_folder(files, folder, key, CARTRIDGE_FILES)

    return Trouble(check, key, problem, "Stored again from a copy that is good.", restore)


def _of(entry: CatalogEntry) -> str:
    return f"Cartridge {entry.digest[:12]} of corpus {entry.corpus!r}"
