"""Flow `reap-runs`: runs that nobody works on any more are started again, a few times.

It acts on crashed runs, on running ones whose heart stopped, on ones that a worker took and never started, and on ones
that a dead worker was to cancel. It never touches a live, a completed, a failed or a cancelled run. A step that a chain
handed off is only marked as crashed: the chain that waits for it starts it anew (`flows.handing_off`).

A heart counts as stopped if it was silent on two looks, with time for a heartbeat between them: when the server was
away, nobody's heart could be heard. Should a run that was taken for dead be alive after all, two processes work on it
for a while: the digest store's lock lets one of them work.
"""

from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from time import sleep
from typing import Annotated, Any

from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.states import Cancelled, Crashed, InfrastructurePending, Scheduled
from pydantic import Field

from flows.liveness import is_silent
from flows.reporting import tell_result

TAG = "cartridge"
"""Tag of the deployments whose runs are looked after."""
REQUEUED = "Requeued"
"""Name of the state that a run is started again with; how often it had it is the count."""
LOOKED_AT = frozenset({StateType.CRASHED, StateType.RUNNING, StateType.PENDING, StateType.CANCELLING})
WAITS_FOR_ROOM = InfrastructurePending().name
"""Name of the pending state whose container exists: the cluster starts it once there is room, with or without a worker.
(A run that waits for a place of Prefect's own limits is scheduled, or runs already.)"""
PAUSE_SHARE = 0.5
"""Of the silence that is allowed: more than a heartbeat, for at least three belong in it."""


@flow(name="reap-runs", flow_run_name="reap runs")
def reap_runs(
    max_requeues: Annotated[int, Field(ge=0, le=20)] = 2,
    silence_seconds: Annotated[float, Field(ge=90)] = 120,
    pending_seconds: Annotated[float, Field(ge=30)] = 600,
    crashed_within_hours: Annotated[float, Field(gt=0, le=720)] = 24,
) -> dict[str, Any]:
    """Start runs again that crashed, fell silent or were never started.

    Args:
        max_requeues: How often one run is started again.
        silence_seconds: A running run that said nothing for so long, and for half as long again, has crashed; at least
            three heartbeats.
        pending_seconds: A run that a worker took so long ago and has not started is started again.
        crashed_within_hours: Older crashes stay as they are.

    Returns:
        How many runs were marked as crashed, started again, given up and marked as cancelled.
    """
    with get_client(sync_client=True) as client:
        reaper = Reaper(client, max_requeues, silence_seconds, pending_seconds, crashed_within_hours)
        return tell_result("reap-runs", dict(reaper.reap()))


class Reaper:
    """Looks at every run, at silent ones twice; see `reap_runs` for its arguments.

    Args:
        pause_seconds: Between the two looks at a silent run; None for half of `silence_seconds`.
    """

    def __init__(
        self,
        client: SyncPrefectClient,
        max_requeues: int,
        silence_seconds: float,
        pending_seconds: float,
        crashed_within_hours: float,
        pause_seconds: float | None = None,
    ) -> None:
        self._client, self._max_requeues = client, max_requeues
        self._silence, self._pending = silence_seconds, timedelta(seconds=pending_seconds)
        self._crashed_within = timedelta(hours=crashed_within_hours)
        self._pause = PAUSE_SHARE * silence_seconds if pause_seconds is None else pause_seconds

    def reap(self) -> Counter[str]:
        """Act on each run that needs it; counts what was done."""
        done: Counter[str] = Counter(marked_crashed=0, requeued=0, given_up=0, marked_cancelled=0)
        runs = self._runs()
        for run in runs:
            done.update(self._act(run))
        if silent := self._silent(runs):
            sleep(self._pause)
            for run in self._silent(silent):
                done.update(self._crash(run, "its heart stopped"))
        return done

    def _runs(self) -> list[FlowRun]:
        wanted = FlowRunFilter(
            tags=FlowRunFilterTags(all_=[TAG]),
            deployment_id=FlowRunFilterDeploymentId(is_null_=False),
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=list(LOOKED_AT))),
        )
        found: list[FlowRun] = []
        while page := self._client.read_flow_runs(flow_run_filter=wanted, limit=200, offset=len(found)):
            found += page
        return found

    def _silent(self, runs: Iterable[FlowRun]) -> list[FlowRun]:
        running = (run for run in runs if run.state is not None and run.state.is_running())
        return [run for run in running if is_silent(self._client, run, self._silence)]

    def _act(self, run: FlowRun) -> list[str]:
        """What needs one look only."""
        if run.state is None:
            return []
        age = datetime.now(UTC) - run.state.timestamp
        match run.state.type:
            case StateType.CRASHED if age < self._crashed_within:
                return self._requeue(run, "it crashed")
            case StateType.PENDING if age > self._pending and run.state.name != WAITS_FOR_ROOM:
                return self._crash(run, "no process took it up")
            case StateType.CANCELLING if age > self._pending:
                return (
                    ["marked_cancelled"] if self._set(run, Cancelled(message="Nobody was left to cancel it.")) else []
                )
        return []

    def _crash(self, run: FlowRun, why: str) -> list[str]:
        crashed = self._set(run, Crashed(message=f"Taken for dead: {why}."))
        return [] if crashed is None else ["marked_crashed", *self._requeue(crashed, why)]

    def _requeue(self, run: FlowRun, why: str) -> list[str]:
        if run.parent_task_run_id is not None:
            return []  # whoever handed it off starts it anew
        before = sum(state.name == REQUEUED for state in self._client.read_flow_run_states(run.id))
        if before >= self._max_requeues:
            return ["given_up"]
        message = f"Started again, {before + 1} of {self._max_requeues}: {why}."
        return ["requeued"] if self._set(run, Scheduled(name=REQUEUED, message=message)) else []

    def _set(self, run: FlowRun, state: "State[Any]") -> FlowRun | None:
        """Change the run's state unless it has changed by itself meanwhile; the run as it is then."""
        now = self._client.read_flow_run(run.id)
        if now.state is None or run.state is None or now.state.id != run.state.id:
            return None
        self._client.set_flow_run_state(run.id, state)
        changed = self._client.read_flow_run(run.id)
        return changed if changed.state is not None and changed.state.type == state.type else None
