"""Handing work to a deployment of its own: it runs on the pool that it belongs to.

`hand_off` waits for a step, without a place on that pool. The caller owns the step: it starts a crashed one anew, and
cancels it when it is cancelled itself. `set_going` waits for nothing and owns nothing.
"""

import json
from collections.abc import Callable
from functools import partial
from itertools import count
from time import sleep
from typing import Any, TypeVar
from uuid import UUID, uuid4

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    ArtifactFilterKey,
    FlowRunFilter,
    FlowRunFilterIdempotencyKey,
)
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelling

from cartridge_core.errors import CartridgeError
from flows.patience import POLL_SECONDS, patiently
from flows.reporting import result_key, result_of

T = TypeVar("T")

MAX_CRASHES = 3
"""Attempts that may end without a word before the step is given up."""


class HandedOffError(CartridgeError):
    """A step that was handed to another deployment did not complete."""


def hand_off(flow: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """Run a flow's deployment and wait for its result.

    Args:
        flow: Name of the flow and of its deployment.
        parameters: By name; what is None is left to the deployment.

    Returns:
        What the flow told with `reporting.tell_result`.

    Raises:
        HandedOffError: It failed, was cancelled, or crashed too often.
    """
    given = _given(parameters)
    with get_client(sync_client=True) as client:
        for attempt in range(1, MAX_CRASHES + 1):
            once = str(uuid4())  # an answer that was lost on its way starts no second step
            started: Any = _asked(
                partial(run_deployment, f"{flow}/{flow}", parameters=given, timeout=0, idempotency_key=once)
            )
            ended = _waited_for(client, started.id)
            state = ended.state
            if state is not None and state.is_completed():
                return _result(client, flow, ended.id)
            if state is None or not state.is_crashed() or attempt == MAX_CRASHES:
                break
    told = f"{state.name}: {state.message}" if state else "gone"
    raise HandedOffError(
        f"{ended.name} ({ended.id}) ended as {told}.", f"Look at it with: prefect flow-run logs {ended.id}"
    )


def set_going(flow: str, parameters: dict[str, Any], purpose: str) -> bool:
    """Start a flow's deployment as a run that stands alone, unless one for the same purpose is under way.

    However the last one ended, it does nothing more for the purpose. (Should the reaper start a crashed one again at
    that moment, both find what the other finished.)

    Args:
        flow: Name of the flow and of its deployment.
        parameters: By name; what is None is left to the deployment.
        purpose: What the run is for. Its runs are numbered, so that two callers at the same time start one.

    Returns:
        Whether a run was started.

    Raises:
        HandedOffError: The server refuses, or stays away.
    """
    with get_client(sync_client=True) as client:
        for attempt in count(1):
            once = f"{purpose}/{attempt}"
            wanted = FlowRunFilter(idempotency_key=FlowRunFilterIdempotencyKey(any_=[once]))
            found = _asked(partial(client.read_flow_runs, flow_run_filter=wanted, limit=1))
            if not found:
                break
            if found[0].state is None or not found[0].state.is_final():
                return False
    start = partial(run_deployment, f"{flow}/{flow}", parameters=_given(parameters), timeout=0, as_subflow=False)
    _asked(partial(start, idempotency_key=once))
    return True


def _given(parameters: dict[str, Any]) -> dict[str, Any]:
    """Parameters as a deployment takes them: paths as text, nothing that is None."""
    given = {name: value for name, value in parameters.items() if value is not None}
    return {name: str(value) if hasattr(value, "__fspath__") else value for name, value in given.items()}


def _waited_for(client: SyncPrefectClient, run_id: UUID) -> FlowRun:
    """The run once it has ended; it is cancelled if the waiting is."""
    try:
        while True:
            run = _asked(lambda: client.read_flow_run(run_id))
            if run.state is not None and run.state.is_final():
                return run
            sleep(POLL_SECONDS)
    except HandedOffError:
        raise
    except BaseException:
        # Also the signal that cancels this run: nobody would wait for the step's result any more.
        client.set_flow_run_state(run_id, Cancelling(message="Who waited for it was ended."))
        raise


def _asked(asked: Callable[[], T]) -> T:
    """What the server answers, once it does.

    Raises:
        HandedOffError: It refuses, or stays away.
    """
    try:
        return patiently(asked)
    except ObjectNotFound as error:
        raise HandedOffError(
            f"Prefect's server does not know the deployment or run: {error}.", "Deploy with: prefect deploy --all"
        ) from error
    except httpx.HTTPError as error:
        raise HandedOffError(f"Prefect's server does not answer: {error}.", "Retry the run.") from error


def _result(client: SyncPrefectClient, flow: str, run_id: UUID) -> dict[str, Any]:
    of_run, of_key = ArtifactFilterFlowRunId(any_=[run_id]), ArtifactFilterKey(any_=[result_key(flow)])
    wanted = ArtifactFilter(flow_run_id=of_run, key=of_key)
    found = _asked(lambda: client.read_artifacts(artifact_filter=wanted))
    if not found:
        raise HandedOffError(f"{flow} ({run_id}) completed without a result.", "Run workers of one version only.")
    data: Any = found[0].data
    return result_of(json.loads(data) if isinstance(data, str) else data)
