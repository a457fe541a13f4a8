"""Study and evaluation over workers: however many there are, the same conversations and the same figures."""

from pathlib import Path

import pytest

from cartridge_core.errors import SettingsError
from cartridge_core.settings import Settings
from cartridge_core.stages.ingest import find_corpus
from cartridge_core.stages.study import find_dataset
from flows.evaluate_cartridge import evaluate_cartridge
from flows.fit_cartridge import fit_cartridge
from flows.ingest_corpus import ingest_corpus
from flows.spreading import spread_over_workers
from flows.synthesize_conversations import synthesize_conversations
from tests.talkative import Workplace

NUM_SHARDS = 6


def studied(workplace: Workplace, home: Path, monkeypatch: pytest.MonkeyPatch, **settings: str) -> str:
    """Digest of a study in a home of its own."""
    monkeypatch.setenv("CARTRIDGE_HOME", str(home))
    for name, value in settings.items():
        monkeypatch.setenv(f"CARTRIDGE_{name.upper()}", value)
    study = workplace.study_file.read_text(encoding="utf-8")
    workplace.study_file.write_text(study.replace("chunks_per_shard = 4", "chunks_per_shard = 1"), encoding="utf-8")
    ingest_corpus("wards", [workplace.documents])
    digest = synthesize_conversations("wards", config=workplace.study_file)["digest"]
    dataset = find_dataset(Settings(), find_corpus(Settings(), "wards"))
    assert len(list(dataset.product.directory.glob("shard-*"))) == NUM_SHARDS
    return str(digest)


def test_one_and_three_workers_make_the_same_dataset_and_report(
    prefect_server: str, workplace: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = studied(workplace, tmp_path / "one", monkeypatch)
    assert studied(workplace, tmp_path / "three", monkeypatch, workers="3") == one
    fit_cartridge("wards", num_tokens=24, steps=6)
    spread = evaluate_cartridge("wards", questions=workplace.questions)["figures"]
    monkeypatch.setenv("CARTRIDGE_WORKERS", "1")
    monkeypatch.setenv("CARTRIDGE_HOME", str(tmp_path / "one"))
    fit_cartridge("wards", num_tokens=24, steps=6)
    alone = evaluate_cartridge("wards", questions=workplace.questions)["figures"]
    assert {k: v for k, v in spread.items() if "second" not in k} == {
        k: v for k, v in alone.items() if "second" not in k
    }


def test_dask_workers_make_the_same_dataset(
    prefect_server: str, workplace: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = studied(workplace, tmp_path / "one", monkeypatch)
    assert studied(workplace, tmp_path / "dask", monkeypatch, workers="2", task_runner="dask") == one


def test_one_worker_needs_no_engine_and_nonsense_is_refused() -> None:
    assert spread_over_workers(Settings()) is None
    for wrong in ({"task_runner": "ray"}, {"workers": 0}):
        with pytest.raises(SettingsError):
            Settings(**wrong)
