"""A place on a GPU: training and local evaluation hold one while they run as deployments, and nothing else does."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.runtime import deployment

LIMIT = "gpu"
"""Global concurrency limit; `prefect gcl update gpu --limit N` says how many GPUs there are."""
LEASE_SECONDS = 60.0
"""After which a dead holder's slot is free again; a live holder renews its lease."""


@contextmanager
def gpu_slot(occupy: int = 1) -> Iterator[None]:
    """Hold places while the block runs. A run that no deployment started shares its GPU with nobody and needs none.

    Args:
        occupy: GPUs that are used together.
    """
    if not deployment.id:
        yield
        return
    _make_limit()
    # A server that is away for a while costs the slot, not the training that holds it.
    with concurrency(
        LIMIT, occupy=occupy, lease_duration=LEASE_SECONDS, strict=True, raise_on_lease_renewal_failure=False
    ):
        yield


def _make_limit() -> None:
    """Make the limit, with room for one, where nobody made it yet: a missing one would limit nothing."""
    with get_client(sync_client=True) as client:
        try:
            client.read_global_concurrency_limit_by_name(LIMIT)
        except ObjectNotFound:
            with suppress(ObjectAlreadyExists):  # by another worker
                client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=LIMIT, limit=1))
