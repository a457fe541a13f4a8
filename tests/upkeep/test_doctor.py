"""Every way in which the stores may disagree is found, set right, and not found again."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import text

from cartridge_core.catalog import CatalogEntry, catalog_session, list_cartridges, list_events, resolve
from cartridge_core.catalog.session import open_engine
from cartridge_core.errors import SettingsError
from cartridge_core.publishing import Evidence, delete, promote, register_cartridge
from cartridge_core.registry import set_alias
from cartridge_core.registry.client import registry_client
from cartridge_core.registry.listing import drop_version
from cartridge_core.settings import Settings
from cartridge_core.storage import ObjectStore, open_store
from cartridge_core.upkeep.doctor import CHECKS, examine
from tests.s3 import left_upload
from tests.samples import SOURCE, grade, save_cartridge

NAME = "default.clinic.reference"
NOW = timedelta(0)


@pytest.fixture
def entry(settings: Settings, tmp_path: Path) -> CatalogEntry:
    """A registered and promoted Cartridge."""
    cartridge = save_cartridge(tmp_path / "c")
    register_cartridge(settings, tmp_path / "c", SOURCE, Evidence(report=grade(cartridge.digest)))
    return promote(settings, "clinic").entry


def troubles(settings: Settings, *checks: str, repair: bool = False) -> list[tuple[str, bool]]:
    return [(one.trouble.check, one.repaired) for one in examine(settings, checks, repair=repair, grace=NOW)]


def served(settings: Settings) -> CatalogEntry:
    with catalog_session(settings, read_only=True) as session:
        return resolve(session, "default", "clinic")


def mlflow_files(settings: Settings) -> ObjectStore:
    """Where MLflow has its own copies."""
    in_bucket = settings.artifact_root.startswith("s3:")
    return open_store(f"{settings.artifact_root}/mlflow" if in_bucket else str(settings.mlflow_artifacts))


def tensors_gone(settings: Settings, entry: CatalogEntry) -> None:
    open_store(settings.artifact_root).delete(f"{entry.artifact_key}/cartridge.safetensors")


def all_gone(settings: Settings, entry: CatalogEntry) -> None:
    for key in open_store(settings.artifact_root).list(str(entry.artifact_key)):
        open_store(settings.artifact_root).delete(key)


def tensors_damaged(settings: Settings, entry: CatalogEntry) -> None:
    store, key = open_store(settings.artifact_root), f"{entry.artifact_key}/cartridge.safetensors"
    data = bytearray(store.read_bytes(key))
    data[-1] ^= 1
    store.write_bytes(key, bytes(data))


def manifest_of_another(settings: Settings, entry: CatalogEntry) -> None:
    store, key = open_store(settings.artifact_root), f"{entry.artifact_key}/manifest.json"
    store.write_bytes(key, store.read_bytes(key).replace(b'"seed": 0', b'"seed": 1').replace(b'"seed":0', b'"seed":1'))


def version_gone(settings: Settings, entry: CatalogEntry) -> None:
    drop_version(settings, NAME, 1)


def alias_by_hand(settings: Settings, entry: CatalogEntry) -> None:
    set_alias(settings, NAME, "canary", 1)


def orphan(settings: Settings, entry: CatalogEntry) -> None:
    open_store(settings.artifact_root).write_bytes(f"default/cartridges/{'9' * 64}/cartridge.safetensors", b"half")


def orphaned_report(settings: Settings, entry: CatalogEntry) -> None:
    open_store(settings.artifact_root).write_bytes(f"default/reports/{'9' * 64}/report.json", b"{}")


def upload(settings: Settings, entry: CatalogEntry) -> None:
    left_upload(settings.artifact_root, "default/cartridge")


def second_version(settings: Settings, entry: CatalogEntry) -> None:
    with registry_client(settings) as client:
        from cartridge_core.registry.client import as_default

        with as_default(client.tracking_uri):
            client.create_model_version(
                NAME, f"models:/{entry.model_id}", model_id=entry.model_id, tags={"cartridge_digest": entry.digest}
            )


OF_FILES = (
    (tensors_gone, "files"),
    (all_gone, "files"),
    (tensors_damaged, "digests"),
    (orphan, "orphans"),
    (upload, "uploads"),
)
OTHERS = (
    (manifest_of_another, "digests"),
    (version_gone, "rows"),
    (second_version, "versions"),
    (alias_by_hand, "aliases"),
    (orphaned_report, "orphans"),
)
# What does not depend on where the files lie is looked at in one place.
in_a_folder = pytest.mark.parametrize("settings", ["folder"], indirect=True)


@pytest.mark.parametrize(
    ("settings", "spoil", "check"),
    [*(("folder", *how) for how in (*OF_FILES, *OTHERS)), *(("s3", *how) for how in OF_FILES)],
    indirect=["settings"],
)
def test_what_is_wrong_is_found_and_set_right(
    settings: Settings, entry: CatalogEntry, spoil: Callable[[Settings, CatalogEntry], None], check: str
) -> None:
    assert troubles(settings) == []
    spoil(settings, entry)
    assert {name for name, _ in troubles(settings)} - ({"aliases"} if check == "rows" else set()) == {check}
    assert (check, True) in troubles(settings, repair=True)
    assert troubles(settings) == []
    assert served(settings).digest == entry.digest
    with catalog_session(settings, read_only=True) as session:
        assert list_events(session, "default")[0].action == "repair"


@in_a_folder
def test_a_version_without_a_row_is_adopted(settings: Settings, entry: CatalogEntry) -> None:
    """As if the process had died between MLflow's version and the catalog's rows."""
    catalog = Path(settings.home, "catalog.db")
    catalog.unlink()
    assert {name for name, _ in troubles(settings)} >= {"versions", "orphans"}
    assert ("versions", True) in troubles(settings, "versions", repair=True)
    with catalog_session(settings, read_only=True) as session:
        (adopted,) = list_cartridges(session, "default", "clinic")
    assert (adopted.digest, adopted.version, adopted.aliases) == (entry.digest, 1, ())


def test_a_deletion_that_was_interrupted_is_completed(settings: Settings, entry: CatalogEntry, tmp_path: Path) -> None:
    store = open_store(settings.artifact_root)
    before = {key: store.read_bytes(key) for key in store.list("default")}
    delete(settings, "clinic", "1", force=True)
    for key, data in before.items():
        store.write_bytes(key, data)
    assert set(troubles(settings)) == {("orphans", False)}
    troubles(settings, repair=True)
    assert troubles(settings) == []
    assert store.list() == []


def test_without_a_good_copy_only_a_person_can_help(settings: Settings, entry: CatalogEntry) -> None:
    all_gone(settings, entry)
    copies = mlflow_files(settings)
    damaged = [key for key in copies.list() if key.endswith("cartridge.safetensors")]
    assert damaged
    for key in damaged:
        copies.write_bytes(key, b"damaged too")
    (found,) = examine(settings, ["files"], repair=True, grace=NOW)
    assert found.trouble.repair is None and not found.repaired
    assert "build it again" in found.trouble.remedy


def test_young_leftovers_may_be_work_that_goes_on(settings: Settings, entry: CatalogEntry) -> None:
    orphan(settings, entry)
    upload(settings, entry)
    second_version(settings, entry)
    assert examine(settings) == []


def test_a_report_that_is_gone_is_told(settings: Settings, entry: CatalogEntry) -> None:
    open_store(settings.artifact_root).delete(f"{entry.report_key}/report.json")
    assert troubles(settings, repair=True) == [("reports", False)]


def test_the_checks_are_named() -> None:
    with pytest.raises(SettingsError, match="Choose from files, digests"):
        examine(Settings(), ["nonsense"])
    assert all(function.__doc__ for function in CHECKS.values())


@in_a_folder
def test_rows_of_the_catalog_are_never_changed_by_it(settings: Settings, entry: CatalogEntry) -> None:
    version_gone(settings, entry)
    troubles(settings, repair=True)
    engine = open_engine(settings.catalog_url)
    with engine.connect() as connection:
        versions = connection.execute(text("SELECT version FROM registrations ORDER BY id")).scalars().all()
    engine.dispose()
    assert len(versions) == 2
