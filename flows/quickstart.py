"""Flow `quickstart`: the sample corpus, every baseline, one task a stage."""

from collections.abc import Callable
from typing import TypeVar

from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from cartridge_core.settings import Settings
from cartridge_core.stages.quickstart import QuickstartResult, quickstart
from cartridge_core.stages.quickstart_plan import LONG_PLAN, SHORT_PLAN
from flows.reporting import progress_artifact, show_markdown

T = TypeVar("T")


def as_task(name: str, work: Callable[[], T]) -> T:
    """Run a step as a Prefect task. The digest store is the cache, so Prefect keeps none."""
    return task(name=name, task_run_name=name, cache_policy=NO_CACHE)(work)()


@flow(name="quickstart")
def quickstart_flow(long: bool = False) -> QuickstartResult:
    """From the sample corpus to an answer.

    Args:
        long: Take the corpus that is twice the model's window.
    """
    with progress_artifact("quickstart") as progress:
        result = quickstart(Settings(), LONG_PLAN if long else SHORT_PLAN, as_task, progress)
    show_markdown("evaluation", result.graded.load().markdown(), "The Cartridge against its baselines")
    return result
