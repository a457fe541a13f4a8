"""Retries for the stages that talk to a store: what a moment's outage broke is tried again, a user's mistake is not."""

from collections.abc import Callable
from typing import Any, TypeVar

from prefect import task
from prefect.cache_policies import NO_CACHE

from cartridge_core.errors import CatalogError, NotFoundError, RegistryError, StorageError

T = TypeVar("T")

RETRY_DELAYS = [2.0, 10.0, 30.0]
"""Seconds before each retry."""


def is_outage(task: Any, run: Any, state: Any) -> bool:
    """Whether a failed task met a store that may answer later."""
    try:
        state.result()
    except NotFoundError:
        return False
    except (StorageError, RegistryError, CatalogError):
        return True
    except Exception:
        # Any other error is Prefect's to report; here it only means that waiting would not help.
        return False
    return False


def with_retries(name: str, work: Callable[[], T]) -> T:
    """Run work as a task that is tried again after an outage. The digest store is the cache, so Prefect keeps none."""
    options = task(
        name=name,
        task_run_name=name,
        cache_policy=NO_CACHE,
        retries=len(RETRY_DELAYS),
        retry_delay_seconds=RETRY_DELAYS,
        retry_condition_fn=is_outage,
    )
    return options(work)()
