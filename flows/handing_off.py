"""Handing a step to a deployment of its own: it runs on the pool that it belongs to, and its caller waits without one.

The caller owns what it handed off: it starts a crashed step anew, and cancels it when it is cancelled itself.
"""

import json
from collections.abc import Callable
from functools import partial
from time import sleep
from typing import Any, TypeVar
from uuid import UUID, uuid4

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, ArtifactFilterKey
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
    given = {name: str(value) if hasattr(value, "__fspath__") else value for name, value in parameters.items()}
    given = {name: value for name, value in given.items() if value is not None}
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
