"""Study and evaluation over workers: however many there are, the same conversations and the same report."""

from pathlib import Path
from typing import Any

import pytest

from cartridge_core.errors import SettingsError
from cartridge_core.settings import Settings
from cartridge_core.stages.ingest import find_corpus
from cartridge_core.stages.study import find_dataset
from flows.spreading import spread_over_workers
from flows.train_cartridge import train_cartridge
from tests.talkative import Workplace


def built(workplace: Workplace, home: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> dict[str, Any]:
    """The chain's digests in a home of its own."""
    monkeypatch.setenv("CARTRIDGE_HOME", str(home))
    for name, value in settings.items():
        monkeypatch.setenv(f"CARTRIDGE_{name.upper()}", str(value))
    study = workplace.study_file.read_text(encoding="utf-8")
    workplace.study_file.write_text(study.replace("chunks_per_shard = 4", "chunks_per_shard = 1"), encoding="utf-8")
    sizes: dict[str, Any] = {"num_tokens": 24, "steps": 6, "study_config": workplace.study_file}
    result = train_cartridge("wards", [workplace.documents], questions=workplace.questions, **sizes)
    dataset = find_dataset(Settings(), find_corpus(Settings(), "wards"))
    assert len(list(dataset.product.directory.glob("shard-*"))) == 6
    return {stage: result[stage]["digest"] for stage in ("dataset", "cartridge")} | {
        "figures": {k: v for k, v in result["report"]["figures"].items() if "second" not in k}
    }


def test_any_number_of_workers_makes_the_same_dataset(
    prefect_server: str, workplace: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = built(workplace, tmp_path / "one", monkeypatch)
    assert built(workplace, tmp_path / "three", monkeypatch, workers=3) == one
    assert built(workplace, tmp_path / "dask", monkeypatch, workers=2, task_runner="dask") == one


def test_one_worker_needs_no_engine_and_nonsense_is_refused() -> None:
    assert spread_over_workers(Settings()) is None
    for wrong in ({"task_runner": "ray"}, {"workers": 0}):
        with pytest.raises(SettingsError):
            Settings(**wrong)
