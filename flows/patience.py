"""Waiting for Prefect's server: while it is away, what was asked of it is asked again."""

from collections.abc import Callable
from time import monotonic, sleep
from typing import TypeVar

import httpx
from prefect.logging import get_logger

T = TypeVar("T")

# The worker's own log: a run's would be sent to the server that is away.
log = get_logger(__name__)

POLL_SECONDS = 2.0
"""Between two looks."""
PATIENCE = 600.0
"""Seconds that the server may be away before waiting for it ends."""


def patiently(asked: Callable[[], T]) -> T:
    """Do something that needs the server, again and again while that is away.

    A client of Prefect's waits for a server that it has reached before; a new one gives up at once, and starting a
    subflow takes a new one. What is done must bear to be done twice: a stage finds what it finished.

    Raises:
        httpx.HTTPError: The server refuses, or does not come back in time.
    """
    deadline, told = monotonic() + PATIENCE, False
    while True:
        try:
            return asked()
        except (httpx.TransportError, httpx.HTTPStatusError) as error:
            refused = isinstance(error, httpx.HTTPStatusError) and error.response.status_code < 500
            if refused or monotonic() > deadline:
                raise
            if not told:
                log.warning("Prefect's server does not answer (%s); waiting up to %.0f s.", error, PATIENCE)
                told = True
            sleep(POLL_SECONDS)
