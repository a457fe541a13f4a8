"""How `make test` shares the tests out among its workers (pytest-xdist): by file, and what takes longest first."""

from collections.abc import Callable

import pytest
from xdist.scheduler import LoadScopeScheduling

TOGETHER = ("tests/serving/vllm", "tests/flows")
"""Folders whose files share a server that is slow to start."""
LONGEST = (*TOGETHER, "tests/training", "tests/upkeep", "tests/serving")
"""Where files take long. They come first, so that at the end no worker is left alone with one."""


class ByFile(LoadScopeScheduling):
    """A worker takes a file at a time, or a folder that stays together."""

    def _split_scope(self, nodeid: str) -> str:
        return next((folder for folder in TOGETHER if nodeid.startswith(folder)), nodeid.partition("::")[0])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Hook of pytest."""
    items.sort(key=lambda item: next((n for n, place in enumerate(LONGEST) if item.nodeid.startswith(place)), 99))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Callable[..., None]) -> LoadScopeScheduling:
    """Hook of pytest-xdist."""
    config.option.loadscopereorder = False
    return ByFile(config, log)
