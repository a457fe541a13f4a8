"""An event loop in a thread of its own, for code that waits for many answers at once and is called by threads."""

import asyncio
from collections.abc import Coroutine
from concurrent.futures import CancelledError, Future
from threading import Lock, Thread
from typing import Any, TypeVar

T = TypeVar("T")


class LoopThread:
    """Runs coroutines for other threads, until it is closed."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._lock, self._open = Lock(), True
        self._thread = Thread(target=self._loop.run_forever, name="teacher", daemon=True)
        self._thread.start()

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run it and wait; where the waiting is interrupted, the work is cancelled.

        Raises:
            CancelledError: The loop is closed, or was meanwhile.
        """
        with self._lock:
            if not self._open:
                work.close()
                raise CancelledError
            future: Future[T] = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def close(self, last: Coroutine[Any, Any, None]) -> None:
        """Cancel what is still running, run this, and end the thread."""
        with self._lock:
            self._open = False
        asyncio.run_coroutine_threadsafe(_alone(last), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _alone(last: Coroutine[Any, Any, None]) -> None:
    # More than once: a cancellation that meets a timeout can be lost.
    while others := asyncio.all_tasks() - {asyncio.current_task()}:
        for task in others:
            task.cancel()
        await asyncio.wait(others, timeout=1.0)
    await last
