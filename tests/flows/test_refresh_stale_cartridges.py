"""Refreshing: what is started for a stale corpus and what is not; one corpus that fails stops no other."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterName
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.sorting import FlowRunSort
from prefect.states import Cancelled, Crashed, Failed, Running

from cartridge_core.catalog import CHAMPION, catalog_session, set_alias
from cartridge_core.errors import TrainingError
from cartridge_core.settings import Settings
from cartridge_core.stages.ingest import ingest
from flows.refresh_stale_cartridges import RefreshError, refresh_stale_cartridges
from flows.reporting import result_key, result_of
from flows.train_cartridge import train_cartridge
from tests.catalog.rows import add_cartridge
from tests.talkative import write_documents

DEPLOYMENT = "train-cartridge"


@pytest.fixture
def client(prefect_server: str) -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as connected:
        yield connected


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("CARTRIDGE_CONFIG", raising=False)
    monkeypatch.setenv("CARTRIDGE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def served(folder: Path, name: str) -> Path:
    """A corpus with a champion; its documents, which a test may change."""
    documents, settings = write_documents(folder / name), Settings()
    digest = ingest(settings, name, [documents]).digest
    with catalog_session(settings) as session:
        row = add_cartridge(session, name, content=digest)
        set_alias(session, "default", name, CHAMPION, row.id)
    return documents


def change(documents: Path) -> None:
    with (documents / "ward.md").open("a", encoding="utf-8") as stream:
        stream.write("The ward of patient 12 is 84.\n")


def names(told: dict[str, Any]) -> dict[str, list[str]]:
    """What of a result is not empty."""
    return {kind: found for kind, found in told.items() if found}


def test_one_that_fails_stops_no_other_and_is_named(
    client: SyncPrefectClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[str] = []

    def train(corpus: str, **asked: Any) -> None:
        trained.append(corpus)
        if corpus == "broken":
            raise TrainingError("The loss is not a number.")

    monkeypatch.setattr("flows.refresh_stale_cartridges.train_cartridge", train)
    for name in ("broken", "emptied", "same", "wards"):
        documents = served(tmp_path, name)
        if name == "emptied":
            for path in documents.iterdir():
                path.unlink()
        elif name != "same":
            change(documents)
    ingest(Settings(), "asked-for-by-nobody", [write_documents(tmp_path / "other")])
    with pytest.raises(RefreshError) as told:
        refresh_stale_cartridges(questions={"slip": tmp_path / "exam.jsonl"})
    assert trained == ["broken", "wards"]
    assert all(part in str(told.value) for part in ("broken: The loss is not a number.", "emptied: ", "slip: "))
    shown = client.request("POST", "/artifacts/latest/filter", json={}).json()
    (table,) = (one["data"] for one in shown if one["key"] == result_key("refresh-stale-cartridges"))
    result = names(result_of(json.loads(table)))
    assert set(result.pop("failed")) == {"broken", "emptied", "slip"}
    assert result == {"trained_again": ["wards"], "fresh": ["same"], "without_champion": ["asked-for-by-nobody"]}


def test_the_same_change_has_one_run_at_a_time_and_a_new_one_after_one_that_ended(
    client: SyncPrefectClient, tmp_path: Path
) -> None:
    train_cartridge.to_deployment(name=DEPLOYMENT).apply()
    change(served(tmp_path, "wards"))
    asked: dict[str, Any] = {
        "questions": {"wards": tmp_path / "exam.jsonl", "other": tmp_path / "other.jsonl"},
        "training_config": tmp_path / "training.toml",
        "teachers": ["http://gpu1:8001"],
        "processes": 2,
        "hand_off_chains": True,
    }

    def refreshed() -> dict[str, list[str]]:
        return names(refresh_stale_cartridges(corpora=["wards"], **asked))

    for number, end in enumerate((Failed, Crashed, Cancelled), 1):
        assert refreshed() == {"started": ["wards"]}
        assert refreshed() == {"under_way": ["wards"]}
        runs = ours(client, tmp_path)
        assert len(runs) == number
        client.set_flow_run_state(runs[0].id, Running(), force=True)
        assert refreshed() == {"under_way": ["wards"]}
        client.set_flow_run_state(runs[0].id, end(), force=True)
    (run, *_) = ours(client, tmp_path)
    assert run.parent_task_run_id is None
    given = run.parameters
    assert given["questions"] == str(tmp_path / "exam.jsonl")
    assert given["training_config"] == str(tmp_path / "training.toml")
    assert (given["teachers"], given["processes"]) == (["http://gpu1:8001"], 2)
    assert given["num_tokens"] == 6
    assert len(given["init_from"]) == 64
    assert "model" not in given  # left to the deployment


def ours(client: SyncPrefectClient, folder: Path) -> list[FlowRun]:
    """Runs of the chain for this test's documents, the newest first."""
    deployment = DeploymentFilter(name=DeploymentFilterName(any_=[DEPLOYMENT]))
    runs = client.read_flow_runs(deployment_filter=deployment, sort=FlowRunSort.EXPECTED_START_TIME_DESC)
    return [run for run in runs if run.parameters.get("paths") == [str(folder / "wards")]]
