"""Answers of the catalog, remembered: for moments always, for a minute when the database is down."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

from cartridge_core.errors import CatalogError
from cartridge_core.serving.errors import CatalogDownError, ServingError

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

_PAUSE_S = 1.0
"""A database that failed is left alone for so long."""


@dataclass(frozen=True)
class Freshness:
    """How long answers are good."""

    fresh_s: float = 2.0
    """Seconds in which an answer is given without asking: after a promotion the old one is served for so long."""
    stale_s: float = 60.0
    """Seconds in which it is still given when the database does not answer."""
    timeout_s: float = 5.0
    """Seconds after which a database counts as down."""
    max_entries: int = 4096
    """Answers kept."""


@dataclass(frozen=True)
class _Answer(Generic[V]):
    at: float
    value: V | None
    refusal: ServingError | None

    def give(self) -> V:
        if self.refusal is not None:
            # A new one each time: an exception that many tasks raise would gather all their tracebacks.
            refusal = self.refusal
            raise type(refusal)(refusal.problem, refusal.remedy, param=refusal.param, code=refusal.code)
        return self.value  # type: ignore[return-value]  # there is a value where there is no refusal


class Remembered(Generic[K, V]):
    """Asks the catalog in a thread, once at a time for each key, and remembers what it said, refusals included.

    Args:
        ask: Asks the database; raises `ServingError` for an answer in the negative and `CatalogError` where there is
            none.
        freshness: How long answers are good.
        clock: Seconds.
    """

    def __init__(
        self, ask: Callable[[K], V], freshness: Freshness, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._ask, self._freshness, self._clock = ask, freshness, clock
        self._answers: OrderedDict[K, _Answer[V]] = OrderedDict()
        self._asking: dict[K, asyncio.Task[_Answer[V]]] = {}
        self._down_until = float("-inf")
        # Threads of its own: a database that hangs must not take those that the rest of the process works with.
        self._threads = ThreadPoolExecutor(max_workers=4, thread_name_prefix="catalog")

    async def get(self, key: K) -> V:
        """The answer for a key.

        Raises:
            ServingError: The answer is a refusal.
            CatalogDownError: The database does not answer, and nothing recent is remembered.
        """
        now, known = self._clock(), self._answers.get(key)
        if known is not None and now - known.at < self._freshness.fresh_s:
            return known.give()
        if now >= self._down_until:
            try:
                # Shielded: a caller who goes away must not take the answer from the others.
                asked = asyncio.shield(self._asked(key))
                return (await asyncio.wait_for(asked, self._freshness.timeout_s)).give()
            except (CatalogError, TimeoutError) as error:
                self._down_until = self._clock() + _PAUSE_S
                cause: Exception | None = error
        else:
            cause = None
        if known is not None and self._clock() - known.at < self._freshness.stale_s:
            return known.give()
        raise CatalogDownError(
            "The catalog does not answer.", "Ask again in a few seconds.", retry_after=_PAUSE_S
        ) from cause

    def forget(self) -> None:
        """Ask anew next time: something was changed through this very process."""
        self._answers.clear()

    def close(self) -> None:
        """Stop asking."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _asked(self, key: K) -> "asyncio.Task[_Answer[V]]":
        task = self._asking.get(key)
        if task is None:
            task = self._asking[key] = asyncio.create_task(self._ask_in_thread(key))
            task.add_done_callback(lambda done: self._settle(key, done))
        return task

    def _settle(self, key: K, done: "asyncio.Task[_Answer[V]]") -> None:
        self._asking.pop(key, None)
        if done.cancelled() or done.exception() is not None:
            return
        self._answers[key] = done.result()
        self._answers.move_to_end(key)
        while len(self._answers) > self._freshness.max_entries:
            self._answers.popitem(last=False)

    async def _ask_in_thread(self, key: K) -> _Answer[V]:
        asked_at = self._clock()
        try:
            value = await asyncio.get_running_loop().run_in_executor(self._threads, self._ask, key)
        except ServingError as refusal:
            return _Answer(asked_at, None, refusal)
        return _Answer(asked_at, value, None)
