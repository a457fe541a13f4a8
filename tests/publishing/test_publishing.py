from collections.abc import Callable
from pathlib import Path

import pytest

from cartridge_core.cartridge import Cartridge
from cartridge_core.catalog import (
    CatalogEntry,
    Status,
    alias_history,
    catalog_session,
    find_cartridge,
    list_cartridges,
    models,
    resolve,
    retire,
)
from cartridge_core.catalog.cartridges import cartridge_row
from cartridge_core.errors import (
    ArtifactError,
    CatalogError,
    EvaluationError,
    NotFoundError,
    PublishingError,
    RegistryError,
    SettingsError,
)
from cartridge_core.publishing import (
    CorpusSource,
    Evidence,
    PromotionGate,
    delete,
    find_drift,
    project_alias,
    promote,
    register_cartridge,
    rollback,
)
from cartridge_core.registry import alias_targets, set_alias
from cartridge_core.registry.client import registry_client
from cartridge_core.report import EvaluationReport
from cartridge_core.settings import Settings
from cartridge_core.storage import get_folder, open_store
from tests.samples import SOURCE, embedded, grade, save_cartridge

NAME = "default.clinic.reference"
Register = Callable[..., CatalogEntry]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return embedded(tmp_path / "home")


@pytest.fixture
def register(settings: Settings, tmp_path: Path) -> Register:
    """Registers a Cartridge by seed that answered `right` of 20 questions, of which ICL answers all."""

    def registered(seed: int = 0, right: int = 19, source: CorpusSource = SOURCE, **more: bool) -> CatalogEntry:
        cartridge = save_cartridge(tmp_path / f"cartridge-{seed}", seed)
        report = grade(cartridge.digest, right)
        return register_cartridge(settings, tmp_path / f"cartridge-{seed}", source, Evidence(report=report), **more)

    return registered


def served(settings: Settings, corpus: str = "clinic") -> CatalogEntry:
    with catalog_session(settings, read_only=True) as session:
        return resolve(session, settings.tenant, corpus)


def listed(settings: Settings, corpus: str = "clinic") -> list[CatalogEntry]:
    with catalog_session(settings, read_only=True) as session:
        return list_cartridges(session, settings.tenant, corpus, include_deleted=True)


def test_registering_makes_files_version_and_rows(settings: Settings, register: Register, tmp_path: Path) -> None:
    entry = register()
    assert (entry.corpus, entry.model_name, entry.version) == ("clinic", NAME, 1)
    assert (entry.status, entry.aliases) == (Status.REGISTERED, ())
    assert (entry.score, entry.icl_score, entry.num_questions) == (0.95, 1.0, 20)
    assert entry.artifact_uri == f"{settings.artifact_root}/default/cartridges/{entry.digest}"
    cartridge = Cartridge.load(Path(entry.artifact_uri))
    assert cartridge.digest == entry.digest
    assert entry.size_bytes == sum(path.stat().st_size for path in Path(entry.artifact_uri).iterdir())
    store = open_store(settings.artifact_root)
    get_folder(store, str(entry.report_key), tmp_path / "report", ("rows.parquet", "report.json"))
    assert EvaluationReport.load(tmp_path / "report").digest == entry.report_digest
    with catalog_session(settings, read_only=True) as session:
        assert session.query(models.CorpusVersionRow).one().num_documents == 1
    assert alias_targets(settings, "clinic") == {}


def test_registering_again_changes_nothing(settings: Settings, register: Register) -> None:
    first = register()
    assert register() == first
    assert len(listed(settings)) == 1


def test_an_interrupted_registration_is_completed(settings: Settings, register: Register, tmp_path: Path) -> None:
    """MLflow is down: the files are stored, the catalog knows nothing; the second time all is there."""
    save_cartridge(tmp_path / "c")
    down = settings.model_copy(update={"mlflow_tracking_uri": "sqlite:////dev/null/mlflow.db"})
    with pytest.raises(RegistryError):
        register_cartridge(down, tmp_path / "c", SOURCE)
    with pytest.raises(NotFoundError):
        listed(settings)
    assert register().version == 1


def test_what_is_not_fit_to_be_registered(settings: Settings, tmp_path: Path) -> None:
    save_cartridge(tmp_path / "acme", tenant="acme")
    with pytest.raises(PublishingError, match="belongs to tenant 'acme', not to 'default'"):
        register_cartridge(settings, tmp_path / "acme", SOURCE)
    save_cartridge(tmp_path / "gap", next_position=9)
    with pytest.raises(PublishingError, match="has 6 tokens but expects the user's first at 9"):
        register_cartridge(settings, tmp_path / "gap", SOURCE)
    save_cartridge(tmp_path / "other", corpus_digest="9" * 64)
    with pytest.raises(PublishingError, match="was trained on content 999999999999"):
        register_cartridge(settings, tmp_path / "other", SOURCE)
    save_cartridge(tmp_path / "good")
    with pytest.raises(PublishingError, match="The report grades Cartridge aaaaaaaaaaaa"):
        register_cartridge(settings, tmp_path / "good", SOURCE, Evidence(report=grade("a" * 64)))
    with pytest.raises(SettingsError, match="corpus name"):
        register_cartridge(settings, tmp_path / "good", CorpusSource("The Clinic", SOURCE.digest))
    with pytest.raises(ArtifactError, match="holds no Cartridge"):
        register_cartridge(settings, tmp_path / "nothing", SOURCE)
    with (tmp_path / "good" / "cartridge.safetensors").open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(ArtifactError, match="damaged"):
        register_cartridge(settings, tmp_path / "good", SOURCE)
    assert open_store(settings.artifact_root).list() == []


def test_a_passed_gate_moves_the_catalogs_alias_and_then_mlflows(settings: Settings, register: Register) -> None:
    entry = register()
    promotion = promote(settings, "clinic", actor="me")
    assert (promotion.moved, promotion.refused, promotion.projection_error) == (True, False, None)
    assert promotion.entry.aliases == ("champion",)
    assert served(settings).digest == entry.digest
    assert served(settings).status is Status.PUBLISHED
    assert alias_targets(settings, "clinic") == {(NAME, "champion"): 1}
    with registry_client(settings) as client:
        assert client.get_model_version(NAME, "1").tags["gate"] == "passed"
        assert client.get_model_version_by_alias(NAME, "champion").tags["cartridge_digest"] == entry.digest
    with catalog_session(settings, read_only=True) as session:
        (change,) = alias_history(session, "default", "clinic")
    assert "accuracy 0.950 against 1.000" in change.reason
    assert change.actor == "me"
    again = promote(settings, "clinic")
    assert (again.moved, again.refused) == (False, False)


def test_a_failed_gate_registers_says_why_and_leaves_the_alias(settings: Settings, register: Register) -> None:
    good = register(0)
    promote(settings, "clinic")
    bad = register(1, right=10)
    assert bad.version == 2
    promotion = promote(settings, "clinic")
    assert (promotion.moved, promotion.refused) == (False, True)
    assert promotion.decision is not None
    assert "0.500 against 1.000" in promotion.decision.sentence
    assert served(settings).digest == good.digest
    assert alias_targets(settings, "clinic") == {(NAME, "champion"): 1}
    with registry_client(settings) as client:
        tags = client.get_model_version(NAME, "2").tags
    assert tags["gate"] == "failed"
    assert "0.500 against 1.000" in tags["gate_reason"]
    with catalog_session(settings, read_only=True) as session:
        assert find_cartridge(session, "default", "clinic", "2").status is Status.REGISTERED


def test_a_failed_gate_leaves_a_serving_cartridge_in_place(settings: Settings, register: Register) -> None:
    """What serves already and is asked about with a stricter gate is refused and stays."""
    register()
    promote(settings, "clinic")
    strict = promote(settings, "clinic", gate=PromotionGate(min_share_of_icl=1))
    assert (strict.moved, strict.refused) == (False, True)
    assert served(settings).version == 1


def test_a_gate_can_be_forced_and_that_is_written_down(settings: Settings, register: Register) -> None:
    register(right=1)
    promotion = promote(settings, "clinic", force=True, reason="demo")
    assert (promotion.moved, promotion.refused) == (True, False)
    with catalog_session(settings, read_only=True) as session:
        (change,) = alias_history(session, "default", "clinic")
    assert change.reason.startswith("Forced: demo. ")
    assert "0.050 against 1.000" in change.reason


def test_without_a_report_nothing_is_promoted(settings: Settings, tmp_path: Path) -> None:
    save_cartridge(tmp_path / "c")
    register_cartridge(settings, tmp_path / "c", SOURCE)
    with pytest.raises(PublishingError, match="was never graded"):
        promote(settings, "clinic")
    assert promote(settings, "clinic", force=True).moved


def test_the_gate_reads_the_newest_report(settings: Settings, register: Register) -> None:
    register(right=5)
    assert not promote(settings, "clinic").moved
    register(right=20)
    assert promote(settings, "clinic").moved


def test_a_report_that_was_tampered_with_promotes_nothing(settings: Settings, register: Register) -> None:
    entry = register(right=5)
    store = open_store(settings.artifact_root)
    key = f"{entry.report_key}/report.json"
    store.write_bytes(key, store.read_bytes(key).replace(b'"score": 0.25', b'"score": 1.0'))
    with pytest.raises(EvaluationError, match="was changed"):
        promote(settings, "clinic")


def test_promotion_goes_on_without_mlflow_and_is_projected_later(settings: Settings, register: Register) -> None:
    entry = register()
    down = settings.model_copy(update={"mlflow_tracking_uri": "sqlite:////dev/null/mlflow.db"})
    promotion = promote(down, "clinic")
    assert promotion.moved
    assert "MLflow" in str(promotion.projection_error)
    assert served(settings).digest == entry.digest
    (drift,) = find_drift(settings)
    assert (drift.alias, drift.catalog_version, drift.mlflow_version) == ("champion", 1, None)
    assert project_alias(settings, "clinic", "champion") == [drift]
    assert find_drift(settings) == []


def test_a_hand_edit_in_mlflow_is_drift_and_is_never_served(settings: Settings, register: Register) -> None:
    register(0)
    promote(settings, "clinic")
    register(1)
    set_alias(settings, NAME, "champion", 2)
    set_alias(settings, NAME, "canary", 2)
    assert served(settings).version == 1
    found = {drift.alias: (drift.catalog_version, drift.mlflow_version) for drift in find_drift(settings)}
    assert found == {"champion": (1, 2), "canary": (None, 2)}
    promote(settings, "clinic", "1")
    assert alias_targets(settings, "clinic") == {(NAME, "champion"): 1, (NAME, "canary"): 2}


def test_rolling_back_goes_one_back_each_time(settings: Settings, register: Register) -> None:
    for seed in range(3):
        register(seed)
        promote(settings, "clinic")
    assert rollback(settings, "clinic", reason="worse").entry.version == 2
    assert alias_targets(settings, "clinic") == {(NAME, "champion"): 2}
    assert rollback(settings, "clinic").entry.version == 1
    with pytest.raises(NotFoundError, match="has no earlier Cartridge"):
        rollback(settings, "clinic")
    assert served(settings).version == 1


def test_rolling_back_skips_what_cannot_be_served(settings: Settings, register: Register) -> None:
    for seed in range(4):
        register(seed)
        promote(settings, "clinic")
    delete(settings, "clinic", "3")
    with catalog_session(settings) as session:
        second = find_cartridge(session, "default", "clinic", "2")
        retire(session, cartridge_row(session, "default", second.cartridge_id))
    assert rollback(settings, "clinic").entry.version == 1
    with pytest.raises(PublishingError, match="is retired"):
        promote(settings, "clinic", "2")


def test_deleting_leaves_a_tombstone_and_no_files(settings: Settings, register: Register) -> None:
    kept = register(0)
    promote(settings, "clinic")
    gone = register(1)
    erasure = delete(settings, "clinic", "2", reason="asked to", actor="me")
    assert erasure.cleared_aliases == ()
    assert len([address for address in erasure.removed if "artifacts/default/" in address]) == 4
    assert [key.split("/")[2] for key in open_store(settings.artifact_root).list("default/cartridges")] == [
        kept.digest,
        kept.digest,
    ]
    assert not any(gone.digest in path.read_text(errors="ignore") for path in settings.mlflow_artifacts.rglob("*.json"))
    with catalog_session(settings, read_only=True) as session:
        tombstone = session.query(models.TombstoneRow).one()
        assert (tombstone.digest, tombstone.reason, tombstone.actor) == (gone.digest, "asked to", "me")
        assert len(tombstone.removed) == 4
    assert [entry.status for entry in listed(settings)] == [Status.DELETED, Status.PUBLISHED]
    with pytest.raises(PublishingError, match="is deleted"):
        promote(settings, "clinic", gone.digest[:12])
    assert find_drift(settings) == []


def test_what_is_served_is_deleted_only_by_force(settings: Settings, register: Register) -> None:
    register(0)
    promote(settings, "clinic")
    register(1)
    promote(settings, "clinic")
    with pytest.raises(CatalogError, match="the alias champion points at it"):
        delete(settings, "clinic", "champion")
    assert served(settings).version == 2
    assert delete(settings, "clinic", "champion", force=True).cleared_aliases == ("champion",)
    with pytest.raises(NotFoundError, match="has no alias"):
        served(settings)
    assert alias_targets(settings, "clinic") == {}
    assert rollback(settings, "clinic").entry.version == 1


def test_an_interrupted_deletion_is_completed(settings: Settings, register: Register) -> None:
    entry = register()
    down = settings.model_copy(update={"mlflow_tracking_uri": "sqlite:////dev/null/mlflow.db"})
    with pytest.raises(RegistryError):
        delete(down, "clinic", "1")
    assert listed(settings)[0].status is Status.DELETED
    assert any(settings.mlflow_artifacts.rglob("cartridge.safetensors"))
    delete(settings, "clinic", entry.digest)
    assert not any(settings.mlflow_artifacts.rglob("cartridge.safetensors"))
    with catalog_session(settings, read_only=True) as session:
        assert session.query(models.TombstoneRow).count() == 1


def test_what_was_deleted_comes_back_only_on_purpose(settings: Settings, register: Register) -> None:
    register()
    delete(settings, "clinic", "1")
    with pytest.raises(PublishingError, match="was deleted"):
        register()
    entry = register(restore=True)
    assert (entry.status, entry.version) == (Status.RESTORED, 2)
    assert promote(settings, "clinic").moved
    assert served(settings).version == 2


def test_files_that_two_corpora_share_go_with_the_last(settings: Settings, register: Register) -> None:
    register()
    register(source=CorpusSource("copy", SOURCE.digest))
    store = open_store(settings.artifact_root)
    delete(settings, "clinic", "1")
    assert len(store.list("default/cartridges")) == 2
    assert promote(settings, "copy").moved
    delete(settings, "copy", "champion", force=True)
    assert store.list() == []


def test_another_artifact_root_is_where_the_files_are_now(
    settings: Settings, register: Register, tmp_path: Path
) -> None:
    register()
    moved = settings.model_copy(update={"artifact_root": str(tmp_path / "elsewhere")})
    entry = register_cartridge(moved, tmp_path / "cartridge-0", SOURCE)
    assert str(entry.artifact_uri).startswith(str(tmp_path / "elsewhere"))
    assert Cartridge.load(str(entry.artifact_uri)).digest == entry.digest
    assert len(listed(settings)) == 1
