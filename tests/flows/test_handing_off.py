"""Handing a step off, against a real server; the worker that would take it is played here, between two looks at it."""

import json
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import ArtifactCreate
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.states import Completed, Crashed, Failed, Pending

from flows import handing_off
from flows.handing_off import HandedOffError, hand_off, set_going
from flows.reap_runs import TAG, Reaper
from flows.reporting import result_key, result_table

STEP = "handed-off-step"


@flow(name=STEP)
def step(number: int = 0) -> None:
    """What is handed off; nobody runs it here."""


@pytest.fixture
def client(prefect_server: str) -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as connected:
        step.to_deployment(name=STEP, tags=[TAG]).apply()
        yield connected


def newest(client: SyncPrefectClient) -> FlowRun:
    return client.read_flow_runs(sort=FlowRunSort.EXPECTED_START_TIME_DESC, limit=1)[0]


def between_looks(monkeypatch: pytest.MonkeyPatch, *acts: Callable[[], None]) -> None:
    """What a worker does, look for look."""
    left = list(acts)
    monkeypatch.setattr(handing_off, "sleep", lambda _: left.pop(0)())


def ends(client: SyncPrefectClient, state: Callable[[], Any]) -> Callable[[], None]:
    def end() -> None:
        client.set_flow_run_state(newest(client).id, state(), force=True)

    return end


def tells(client: SyncPrefectClient, facts: dict[str, Any]) -> Callable[[], None]:
    def tell() -> None:
        run: UUID = newest(client).id
        client.create_artifact(
            ArtifactCreate(key=result_key(STEP), type="table", data=json.dumps(result_table(facts)), flow_run_id=run)
        )

    return tell


def test_a_crashed_step_is_started_anew_and_its_result_comes_back(
    client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = {"digest": "abc", "figures": {"score": 0.5}}
    between_looks(monkeypatch, ends(client, Crashed), tells(client, facts), ends(client, Completed))
    assert hand_off(STEP, {"number": 7, "other": None}) == facts
    assert newest(client).parameters == {"number": 7}


def test_a_step_that_a_worker_took_and_never_started_is_started_anew(
    client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[UUID] = []

    def takes_it_and_dies() -> None:
        taken.append(newest(client).id)
        client.set_flow_run_state(taken[0], Pending(), force=True)

    def reaps() -> None:
        Reaper(client, 2, silence_seconds=3600, pending_seconds=0, crashed_within_hours=1).reap()

    @flow(name="chain-that-waits")
    def chain() -> dict[str, Any]:
        return hand_off(STEP, {})

    facts = {"digest": "abc"}
    between_looks(monkeypatch, takes_it_and_dies, reaps, tells(client, facts), ends(client, Completed))
    assert chain() == facts
    first = client.read_flow_run(taken[0])
    assert first.parent_task_run_id is not None
    assert first.state is not None
    assert first.state.is_crashed()
    assert newest(client).id != first.id


def test_a_failed_step_is_not_tried_again(client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch) -> None:
    between_looks(monkeypatch, ends(client, lambda: Failed(message="Too little memory.")))
    with pytest.raises(HandedOffError, match="Too little memory"):
        hand_off(STEP, {})


def test_a_step_that_is_not_deployed_is_named(client: SyncPrefectClient) -> None:
    with pytest.raises(HandedOffError, match="prefect deploy --all"):
        hand_off("nobody-deployed-this", {})
    with pytest.raises(HandedOffError, match="prefect deploy --all"):
        set_going("nobody-deployed-this", {}, "anything")


def test_a_purpose_has_one_run_at_a_time(client: SyncPrefectClient) -> None:
    assert set_going(STEP, {"number": 1}, "spring")
    first = newest(client).id
    assert not set_going(STEP, {"number": 2}, "spring")
    assert newest(client).id == first
    assert set_going(STEP, {"number": 3}, "autumn")
    client.set_flow_run_state(first, Failed(), force=True)
    assert set_going(STEP, {"number": 4, "other": None}, "spring")
    assert newest(client).parameters == {"number": 4}
    assert not set_going(STEP, {"number": 5}, "spring")


def test_who_waits_is_cancelled_and_so_is_the_step(client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def cancelled() -> None:
        raise KeyboardInterrupt  # as the signal that cancels a run, it is no Exception

    between_looks(monkeypatch, cancelled)
    with pytest.raises(KeyboardInterrupt):
        hand_off(STEP, {})
    state = newest(client).state
    assert state is not None
    assert state.type in (StateType.CANCELLING, StateType.CANCELLED)
