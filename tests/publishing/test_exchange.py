import io
import tarfile
from pathlib import Path

import pytest

from cartridge_core.benchmarks import BENCHMARKS, Question
from cartridge_core.cartridge import Cartridge
from cartridge_core.catalog import CatalogEntry, Status, catalog_session, manifest_of
from cartridge_core.errors import ArtifactError, NotFoundError, PublishingError
from cartridge_core.publishing import (
    Evidence,
    delete,
    export_cartridge,
    import_cartridge,
    promote,
    register_cartridge,
)
from cartridge_core.report import EvaluationReport
from cartridge_core.settings import Settings
from tests.samples import CORPUS, SOURCE, embedded, grade, save_cartridge

FILES = ["cartridge.safetensors", "manifest.json", "report.json", "rows.parquet"]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return embedded(tmp_path / "home")


@pytest.fixture
def entry(settings: Settings, tmp_path: Path) -> CatalogEntry:
    """A Cartridge that is served."""
    cartridge = save_cartridge(tmp_path / "cartridge")
    register_cartridge(settings, tmp_path / "cartridge", SOURCE, Evidence(report=grade(cartridge.digest)))
    return promote(settings, "clinic").entry


@pytest.mark.parametrize("name", ["out", "out.tar"])
def test_there_and_back(settings: Settings, entry: CatalogEntry, tmp_path: Path, name: str) -> None:
    target = export_cartridge(settings, "clinic", tmp_path / "deep" / name)
    assert [path.name for path in target.parent.iterdir()] == [name]
    other = embedded(tmp_path / "other")
    imported = import_cartridge(other, target, "ward")
    assert (imported.digest, imported.corpus, imported.corpus_digest) == (entry.digest, "ward", SOURCE.digest)
    assert (imported.score, imported.report_digest) == (entry.score, entry.report_digest)
    assert promote(other, "ward").moved
    assert import_cartridge(other, target, "ward").cartridge_id == imported.cartridge_id


def test_a_folder_is_what_a_notebook_loads(settings: Settings, entry: CatalogEntry, tmp_path: Path) -> None:
    folder = export_cartridge(settings, "clinic", tmp_path / "out", "1")
    assert sorted(path.name for path in folder.iterdir()) == FILES
    assert Cartridge.load(folder).digest == entry.digest
    assert folder.stat().st_mode & 0o777 == 0o755


def test_the_same_cartridge_gives_the_same_bytes(settings: Settings, entry: CatalogEntry, tmp_path: Path) -> None:
    first = export_cartridge(settings, "clinic", tmp_path / "a.tar").read_bytes()
    assert export_cartridge(settings, "clinic", tmp_path / "b.tar").read_bytes() == first
    with tarfile.open(tmp_path / "a.tar") as archive:
        assert archive.getnames()[-1] == "manifest.json"
        assert all(member.uid == member.mtime == 0 for member in archive)


def test_a_bare_cartridge_can_be_imported_but_not_promoted(settings: Settings, tmp_path: Path) -> None:
    save_cartridge(tmp_path / "c")
    imported = import_cartridge(settings, tmp_path / "c", "clinic")
    assert imported.score is None
    with pytest.raises(PublishingError, match="never graded"):
        promote(settings, "clinic")


def test_nothing_is_overwritten(settings: Settings, entry: CatalogEntry, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for target in (tmp_path / "full", tmp_path / "file"):
        with pytest.raises(PublishingError, match="not an empty folder"):
            export_cartridge(settings, "clinic", target)
    (tmp_path / "empty").mkdir()
    export_cartridge(settings, "clinic", tmp_path / "empty")


def test_what_is_gone_cannot_be_exported(settings: Settings, entry: CatalogEntry, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no Cartridge '7'"):
        export_cartridge(settings, "clinic", tmp_path / "out", "7")
    delete(settings, "clinic", "1", force=True)
    with pytest.raises(PublishingError, match="was deleted"):
        export_cartridge(settings, "clinic", tmp_path / "out", entry.digest)
    assert not (tmp_path / "out").exists()


def test_a_deletion_is_undone_by_an_export_only_on_purpose(
    settings: Settings, entry: CatalogEntry, tmp_path: Path
) -> None:
    target = export_cartridge(settings, "clinic", tmp_path / "out.tar")
    delete(settings, "clinic", "1", force=True)
    with pytest.raises(PublishingError, match="was deleted"):
        import_cartridge(settings, target, "clinic")
    assert import_cartridge(settings, target, "clinic", restore=True).status is Status.RESTORED


def test_a_damaged_store_exports_nothing(settings: Settings, entry: CatalogEntry, tmp_path: Path) -> None:
    (Path(str(entry.artifact_uri)) / "cartridge.safetensors").write_bytes(b"rot")
    with pytest.raises(ArtifactError, match="damaged"):
        export_cartridge(settings, "clinic", tmp_path / "out.tar")
    assert not list(tmp_path.glob("*out*"))


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


@pytest.mark.parametrize(
    "evil",
    [
        member("../evil"),
        member("/tmp/evil"),
        member("manifest.json/../../evil"),
        member("sub/manifest.json"),
        member("manifest.json", tarfile.SYMTYPE, "/etc/passwd"),
        member("manifest.json", tarfile.LNKTYPE, "/etc/passwd"),
        member("manifest.json", tarfile.FIFOTYPE),
        member("manifest.json", tarfile.CHRTYPE),
        member("manifest.json", tarfile.DIRTYPE),
        member("extra.py"),
    ],
    ids=lambda info: f"{info.name}-{info.type.decode()}",
)
def test_an_evil_archive_is_refused_and_writes_nothing(
    settings: Settings, tmp_path: Path, evil: tarfile.TarInfo
) -> None:
    path = tmp_path / "evil.tar"
    with tarfile.open(path, "w") as archive:
        archive.addfile(evil, io.BytesIO())
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ArtifactError, match="not part of an export"):
        import_cartridge(settings, path, "clinic")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_file_twice_is_refused(settings: Settings, tmp_path: Path) -> None:
    path = tmp_path / "twice.tar"
    with tarfile.open(path, "w") as archive:
        for _ in range(2):
            archive.addfile(member("manifest.json"), io.BytesIO())
    with pytest.raises(ArtifactError, match="not part of an export"):
        import_cartridge(settings, path, "clinic")


def test_an_archive_that_others_packed_by_hand_is_read(settings: Settings, entry: CatalogEntry, tmp_path: Path) -> None:
    folder = export_cartridge(settings, "clinic", tmp_path / "out")
    with tarfile.open(tmp_path / "hand.tar", "w") as archive:
        archive.add(folder, ".")
    assert import_cartridge(embedded(tmp_path / "other"), tmp_path / "hand.tar", "ward").digest == entry.digest


@pytest.mark.parametrize("content", [b"", b"no archive at all" * 100])
def test_what_is_no_archive(settings: Settings, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.tar").write_bytes(content)
    with pytest.raises(ArtifactError):
        import_cartridge(settings, tmp_path / "x.tar", "clinic")
    with pytest.raises(ArtifactError, match=r"gone\.tar"):
        import_cartridge(settings, tmp_path / "gone.tar", "clinic")


def test_a_folder_with_a_link_is_refused(settings: Settings, tmp_path: Path) -> None:
    save_cartridge(tmp_path / "real")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "manifest.json").symlink_to(tmp_path / "real" / "manifest.json")
    with pytest.raises(ArtifactError, match="not a regular file"):
        import_cartridge(settings, tmp_path / "linked", "clinic")


def test_a_cartridge_of_nothing_in_particular_is_refused(settings: Settings, tmp_path: Path) -> None:
    save_cartridge(tmp_path / "c", corpus_digest=None)
    with pytest.raises(PublishingError, match="does not say which content"):
        import_cartridge(settings, tmp_path / "c", "clinic")


@pytest.mark.parametrize("storage", ["int8", "fp8"])
@pytest.mark.parametrize("name", ["out", "out.tar"])
def test_a_quantised_export_is_a_cartridge_of_its_own(
    settings: Settings, entry: CatalogEntry, tmp_path: Path, storage: str, name: str
) -> None:
    target = export_cartridge(settings, "clinic", tmp_path / name, quantize=storage)
    other = embedded(tmp_path / "other")
    imported = import_cartridge(other, target, "ward")
    with catalog_session(other) as session:
        manifest = manifest_of(session, imported)
    assert manifest.origin is not None and manifest.origin.digest == entry.digest != imported.digest
    assert manifest.quantization is not None
    assert (imported.kv_bytes, imported.corpus_digest) == (entry.kv_bytes, entry.corpus_digest)
    assert manifest.stored_bytes < entry.kv_bytes * 0.6
    assert imported.size_bytes is not None and entry.size_bytes is not None
    # The newest report does not know it, so nothing vouches for it.
    assert imported.score is None
    # A version of its own beside the exact one, under the same name too.
    assert import_cartridge(settings, target, "clinic").version == 2


def test_a_quantised_export_brings_the_report_that_graded_it(
    settings: Settings, entry: CatalogEntry, tmp_path: Path
) -> None:
    folder = Path(str(entry.artifact_uri))
    quantized = Cartridge.load(folder).quantized("int8")
    report = grade(entry.digest)
    own = report.cartridge
    rows = tuple(row.model_copy(update={"arm": "int8"}) for row in own.rows)
    arm = own.model_copy(
        update={"name": "int8", "rows": rows, "cartridge_digest": quantized.digest, "stored_bytes": 900}
    )
    both = EvaluationReport.build(
        corpus=CORPUS,
        questions=[Question(id=row.question_id, question=row.question, answer=row.answer) for row in rows],
        base_model=report.base_model,
        benchmark=BENCHMARKS["closed_answer"],
        results=[*report.arms, arm],
        seconds=3.0,
    )
    register_cartridge(settings, folder, SOURCE, Evidence(report=both))
    other = embedded(tmp_path / "other")
    target = export_cartridge(settings, "clinic", tmp_path / "out", quantize="int8")
    imported = import_cartridge(other, target, "ward")
    assert (imported.digest, imported.score) == (quantized.digest, entry.score)
    assert promote(other, "ward").moved
    assert (
        import_cartridge(other, export_cartridge(settings, "clinic", tmp_path / "fp8", quantize="fp8"), "ward").score
        is None
    )


def test_a_quantised_cartridge_is_not_quantised_again(settings: Settings, entry: CatalogEntry, tmp_path: Path) -> None:
    import_cartridge(settings, export_cartridge(settings, "clinic", tmp_path / "int8", quantize="int8"), "clinic")
    with pytest.raises(ArtifactError, match=f"cannot be quantised again.*{entry.digest[:12]}"):
        export_cartridge(settings, "clinic", tmp_path / "fp8", "2", quantize="fp8")
    with pytest.raises(ArtifactError, match="no quantised storage 'int4'"):
        export_cartridge(settings, "clinic", tmp_path / "int4", quantize="int4")
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["cartridge", "home", "int8"]
