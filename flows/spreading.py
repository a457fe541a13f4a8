"""Spreading the groups of a stage over workers, each group a Prefect task: threads of this process, or Dask."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.futures import as_completed
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from cartridge_core.errors import SettingsError
from cartridge_core.settings import Settings
from cartridge_core.stages.steps import Spread
from flows.retrying import RETRY_DELAYS, is_outage

G = TypeVar("G")


def spread_over_workers(settings: Settings) -> Spread | None:
    """What spreads groups over the settings' workers; None where there is one, in this process.

    Raises:
        SettingsError: The task runner that the settings name is not installed.
    """
    if settings.task_runner == "threads" and settings.workers == 1:
        return None
    make_runner = _task_runner(settings)

    def spread(work: Callable[[G], None], groups: Sequence[G], done: Callable[[int], None]) -> None:
        with make_runner() as runner:
            futures = [runner.submit(_group, {"work": work, "group": group}) for group in groups]
            for count, future in enumerate(as_completed(futures), 1):
                future.result()
                done(count)

    return spread


def _task_runner(settings: Settings) -> Callable[[], "TaskRunner[Any]"]:
    if settings.task_runner == "threads":
        return lambda: ThreadPoolTaskRunner(max_workers=settings.workers)
    try:
        from prefect_dask.task_runners import DaskTaskRunner
    except ImportError as error:
        raise SettingsError(
            f"task_runner = {settings.task_runner!r} needs prefect-dask.", "Install cartridge-foundry[dask]."
        ) from error
    if settings.task_runner != "dask":
        return lambda: DaskTaskRunner(address=settings.task_runner)
    # A model computes in one thread's hands at a time: processes share the work, threads would wait for each other.
    own = {"n_workers": settings.workers, "threads_per_worker": 1, "dashboard_address": None}
    return lambda: DaskTaskRunner(cluster_kwargs=own)


@task(
    name="group",
    task_run_name="group {group}",
    cache_policy=NO_CACHE,
    retries=len(RETRY_DELAYS),
    retry_delay_seconds=RETRY_DELAYS,
    retry_condition_fn=is_outage,
)
def _group(work: Callable[[Any], None], group: Any) -> None:
    work(group)
