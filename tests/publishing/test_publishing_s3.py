from collections.abc import Iterator
from pathlib import Path

import pytest

from cartridge_core.cartridge import Cartridge
from cartridge_core.publishing import Evidence, delete, export_cartridge, promote, register_cartridge
from cartridge_core.settings import Settings
from cartridge_core.storage import open_store
from tests.s3 import make_bucket, s3_server, s3_variables
from tests.samples import SOURCE, embedded, grade, save_cartridge

ROOT = "s3://foundry/cartridges"


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Settings]:
    with s3_server() as endpoint:
        for name, value in s3_variables(endpoint).items():
            monkeypatch.setenv(name, value)
        make_bucket("foundry")
        yield embedded(tmp_path / "home", artifact_root=ROOT)


def test_everything_works_on_a_bucket_and_leaves_it_empty(settings: Settings, tmp_path: Path) -> None:
    cartridge = save_cartridge(tmp_path / "c")
    evidence = Evidence(report=grade(cartridge.digest))
    entry = register_cartridge(settings, tmp_path / "c", SOURCE, evidence)
    assert entry.artifact_uri == f"{ROOT}/default/cartridges/{cartridge.digest}"
    assert promote(settings, "clinic").moved
    folder = export_cartridge(settings, "clinic", tmp_path / "out")
    assert Cartridge.load(folder).digest == cartridge.digest
    bucket = open_store("s3://foundry")
    assert {key.split("/")[1] for key in bucket.list()} == {"default", "mlflow"}
    assert not (settings.home / "artifacts").exists()
    assert not settings.mlflow_artifacts.exists()
    delete(settings, "clinic", "champion", force=True)
    assert bucket.list() == []
