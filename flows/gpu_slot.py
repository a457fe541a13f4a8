"""A place on a GPU: training and local evaluation hold one while they run as deployments, and nothing else does."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.runtime import deployment

from cartridge_core.errors import SettingsError

LIMIT = "gpu"
"""Global concurrency limit; `prefect gcl update gpu --limit N` says how many GPUs there are."""
LEASE_SECONDS = 60.0
"""After which a dead holder's slot is free again; a live holder renews its lease."""


@contextmanager
def gpu_slot(occupy: int = 1) -> Iterator[None]:
    """Hold places while the block runs. A run that no deployment started shares its GPU with nobody and needs none.

    Args:
        occupy: GPUs that are used together.

    Raises:
        SettingsError: There are never so many: waiting would not end.
    """
    if not deployment.id:
        yield
        return
    if occupy > (room := _room()):
        raise SettingsError(
            f"processes = {occupy} needs {occupy} GPUs; the limit '{LIMIT}' has room for {room}.",
            f"Use fewer processes, or say how many GPUs there are: prefect gcl update {LIMIT} --limit N",
        )
    # A server that is away for a while costs the slot, not the training that holds it.
    with concurrency(
        LIMIT, occupy=occupy, lease_duration=LEASE_SECONDS, strict=True, raise_on_lease_renewal_failure=False
    ):
        yield


def _room() -> int:
    """How many places there are. Where nobody has said, the limit is made with one: a missing one limits nothing."""
    with get_client(sync_client=True) as client:
        try:
            return client.read_global_concurrency_limit_by_name(LIMIT).limit
        except ObjectNotFound:
            with suppress(ObjectAlreadyExists):  # by another worker
                client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=LIMIT, limit=1))
            return 1
