"""The reaper against a real server: what it starts again, how often, and what it leaves alone."""

import json
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest
import typer
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import StateType
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import (
    Cancelled,
    Cancelling,
    Completed,
    Crashed,
    Failed,
    InfrastructurePending,
    Pending,
    Running,
    State,
)
from typer.testing import CliRunner

from cartridge_core.errors import SettingsError
from flows.commands import reap
from flows.liveness import is_silent
from flows.reap_runs import REQUEUED, TAG, Reaper


@flow(name="nothing")
def nothing() -> None:
    """A flow whose runs only have states here."""


@pytest.fixture
def client(prefect_server: str) -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as connected:
        yield connected


def run_in(client: SyncPrefectClient, *states: State[Any], tag: str = TAG) -> UUID:
    """A run of a deployment that went through these states."""
    deployment: Any = nothing.to_deployment(name=f"nothing-{tag}", tags=[tag]).apply()
    run = client.create_flow_run_from_deployment(deployment)
    for state in states:
        client.set_flow_run_state(run.id, state, force=True)
    return run.id


def beat(client: SyncPrefectClient, run_id: UUID) -> None:
    """A heartbeat, as Prefect's engine sends it."""
    event = {
        "id": str(uuid4()),
        "occurred": datetime.now(UTC).isoformat(),
        "event": "prefect.flow-run.heartbeat",
        "resource": {"prefect.resource.id": f"prefect.flow-run.{run_id}", "prefect.resource.name": "run"},
        "payload": {},
    }
    client.request("POST", "/events", json=[event]).raise_for_status()


def state_of(client: SyncPrefectClient, run_id: UUID) -> tuple[StateType, str]:
    state = client.read_flow_run(run_id).state
    assert state is not None
    return state.type, str(state.name)


def reaper(
    client: SyncPrefectClient,
    max_requeues: int = 2,
    silence: float = 3600,
    pending: float = 3600,
    pause: float | None = 0.0,
) -> Reaper:
    return Reaper(client, max_requeues, silence, pending, crashed_within_hours=1, pause_seconds=pause)


def test_a_crashed_run_is_started_again_so_often_and_no_more(client: SyncPrefectClient) -> None:
    run = run_in(client, Running(), Crashed())
    for _ in range(2):
        reaper(client).reap()
        assert state_of(client, run) == (StateType.SCHEDULED, REQUEUED)
        reaper(client).reap()  # waits for a worker: left alone
        assert state_of(client, run) == (StateType.SCHEDULED, REQUEUED)
        client.set_flow_run_state(run, Running(), force=True)
        client.set_flow_run_state(run, Crashed(), force=True)
    assert reaper(client).reap()["given_up"] == 1
    assert state_of(client, run)[0] is StateType.CRASHED


def test_a_run_whose_heart_stopped_crashed_and_a_live_one_did_not(client: SyncPrefectClient) -> None:
    dead, live, deaf = (run_in(client, Running()) for _ in range(3))
    beat(client, dead)
    time.sleep(2.5)
    beat(client, live)
    for _ in range(50):
        done = reaper(client, silence=2).reap()
        if done["marked_crashed"]:
            break
        beat(client, live)
        time.sleep(0.2)
    assert state_of(client, dead) == (StateType.SCHEDULED, REQUEUED)
    assert state_of(client, live)[0] is StateType.RUNNING
    # Never heard: its worker may have heartbeats turned off.
    assert state_of(client, deaf)[0] is StateType.RUNNING


def test_who_is_heard_again_after_the_servers_absence_is_alive(
    client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    live, dead = run_in(client, Running()), run_in(client, Running())
    for run in (live, dead):
        beat(client, run)
        wait_until_silent(client, run, True)  # the server's absence, in which nobody was heard
    paused: list[float] = []

    def until_the_next_beat(seconds: float) -> None:
        paused.append(seconds)
        beat(client, live)
        wait_until_silent(client, live, False)

    monkeypatch.setattr("flows.reap_runs.sleep", until_the_next_beat)
    reaper(client, silence=2, pause=None).reap()
    assert paused == [1.0]
    assert state_of(client, live)[0] is StateType.RUNNING
    assert state_of(client, dead) == (StateType.SCHEDULED, REQUEUED)
    reaper(client, silence=3600, pause=None).reap()
    assert len(paused) == 1  # nobody is silent, nothing is waited for


def wait_until_silent(client: SyncPrefectClient, run_id: UUID, silent: bool) -> None:
    """Wait until the server says that a run was silent for 2 s, or was not; it writes events down a moment later."""
    run, deadline = client.read_flow_run(run_id), time.monotonic() + 20
    while is_silent(client, run, 2) is not silent:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_run_that_nobody_started_and_one_that_nobody_cancels(client: SyncPrefectClient) -> None:
    pending, cancelling = run_in(client, Pending()), run_in(client, Running(), Cancelling())
    waiting = run_in(client, Pending(), InfrastructurePending())
    reaper(client).reap()
    assert state_of(client, pending)[0] is StateType.PENDING
    assert state_of(client, cancelling)[0] is StateType.CANCELLING
    reaper(client, pending=0).reap()
    assert state_of(client, pending) == (StateType.SCHEDULED, REQUEUED)
    assert state_of(client, cancelling)[0] is StateType.CANCELLED
    # Its container exists and waits for room in a cluster.
    assert state_of(client, waiting) == (StateType.PENDING, "InfrastructurePending")


def test_a_run_that_nobody_starts_is_given_up_at_last(client: SyncPrefectClient) -> None:
    run = run_in(client, Pending())
    assert reaper(client, max_requeues=0, pending=0).reap()["given_up"] > 0
    assert state_of(client, run)[0] is StateType.CRASHED


@pytest.mark.parametrize("ended", [Completed, Failed, Cancelled])
def test_what_ended_otherwise_stays(client: SyncPrefectClient, ended: Callable[[], State[Any]]) -> None:
    run = run_in(client, Running(), ended())
    other = run_in(client, Running(), Crashed(), tag="somebody-elses")
    before = state_of(client, run)
    reaper(client, silence=0, pending=0).reap()
    assert state_of(client, run) == before
    assert state_of(client, other)[0] is StateType.CRASHED


def test_the_command_reaps_once_and_needs_a_server(client: SyncPrefectClient) -> None:
    app = typer.Typer()
    app.command()(reap)
    run = run_in(client, Running(), Crashed())
    done = CliRunner().invoke(app, ["--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["requeued"] == 1
    assert state_of(client, run) == (StateType.SCHEDULED, REQUEUED)
    with temporary_settings({PREFECT_API_URL: None}):
        assert isinstance(CliRunner().invoke(app, []).exception, SettingsError)
