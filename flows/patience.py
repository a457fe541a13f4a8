"""Waiting for Prefect's server: while it is away, what was asked of it is asked again."""

from collections.abc import Callable
from time import monotonic, sleep
from typing import TypeVar

import httpx

T = TypeVar("T")

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
    deadline = monotonic() + PATIENCE
    while True:
        try:
            return asked()
        except (httpx.TransportError, httpx.HTTPStatusError) as error:
            refused = isinstance(error, httpx.HTTPStatusError) and error.response.status_code < 500
            if refused or monotonic() > deadline:
                raise
            sleep(POLL_SECONDS)
