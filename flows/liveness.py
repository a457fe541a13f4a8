"""Whether somebody is still at work on a flow run: its heartbeats, as Prefect's server has heard them."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

UNHEARD_SECONDS = 3600.0
"""Silence of a run that was never heard: its worker may have heartbeats turned off, so it gets long."""
MISSED_BEATS = 3
"""A run whose heart beats slowly gets at least so many of its own beats."""


@contextmanager
def one_heart() -> Iterator[None]:
    """Let subflows in this process be heard through the run that they belong to.

    A heart of their own would cost each up to a second at its end: Prefect's thread looks up only so often.
    """
    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        yield


def is_silent(client: SyncPrefectClient, run: FlowRun, silence_seconds: float, now: datetime | None = None) -> bool:
    """Whether nothing was heard of a run for too long.

    Args:
        client: Of the server.
        run: A run that is said to be at work.
        silence_seconds: How long a run may say nothing.
        now: Time to judge at.
    """
    now = now or datetime.now(UTC)
    if run.state is None:
        return False
    since = run.state.timestamp
    beats = _newest_heartbeats(client, run, since)
    if not beats:
        return now - since > timedelta(seconds=max(silence_seconds, UNHEARD_SECONDS))
    own_rhythm = (beats[0] - beats[1]) * MISSED_BEATS if len(beats) > 1 else timedelta()
    return now - beats[0] > max(timedelta(seconds=silence_seconds), own_rhythm)


def _newest_heartbeats(client: SyncPrefectClient, run: FlowRun, since: datetime) -> list[datetime]:
    """Times of the last two heartbeats of the present attempt, the newest first."""
    # The first beat and the state that it follows are told apart by different clocks.
    asked = {
        "filter": {
            "occurred": {"since": (since - timedelta(seconds=5)).isoformat()},
            "event": {"name": ["prefect.flow-run.heartbeat"]},
            "resource": {"id": [f"prefect.flow-run.{run.id}"]},
            "order": "DESC",
        },
        "limit": 2,
    }
    answer = client.request("POST", "/events/filter", json=asked)
    answer.raise_for_status()
    return [datetime.fromisoformat(event["occurred"]) for event in answer.json()["events"]]
