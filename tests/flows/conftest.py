"""A Prefect server for the session, and the workplace that the flows work in."""

from collections.abc import Iterator

import pytest
from prefect.settings import PREFECT_API_URL
from prefect.testing.utilities import prefect_test_harness

from tests.talkative import talkative, workplace

__all__ = ["talkative", "workplace"]


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[str]:
    """Address of a server with a database of its own; flows in this process use it."""
    with prefect_test_harness(server_startup_timeout=180):
        yield str(PREFECT_API_URL.value())
