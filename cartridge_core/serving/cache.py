"""Loaded Cartridges and compositions, kept as long as there is room: least recently used ones go first, pinned ones
and those in use never."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from cartridge_core.serving.composition import Wanted, digests_of
from cartridge_core.serving.errors import NotLoadedError, UnknownModelError
from cartridge_core.serving.tracing import span

T = TypeVar("T")

_LOADS_AT_ONCE = 2


@dataclass(frozen=True)
class Resident:
    """A Cartridge or a composition in memory."""

    cartridge: Wanted
    num_bytes: int
    pinned: bool
    in_use: int
    """Requests that it answers right now."""


@dataclass
class _Entry(Generic[T]):
    cartridge: Wanted
    value: T
    num_bytes: int
    in_use: int = 0


@dataclass
class CacheCounts:
    """What the cache did since it was made."""

    hits: int = 0
    misses: int = 0
    loads: int = 0
    failed_loads: int = 0
    evictions: int = 0
    load_seconds: float = 0.0
    """Wall time of all loads."""
    resident_bytes: int = 0
    """Bytes of the Cartridges in memory now."""


class CartridgeCache(Generic[T]):
    """An LRU of loaded Cartridges, bounded in bytes. Belongs to one event loop; loads run in threads.

    Args:
        load: Fetches and prepares a Cartridge; may block.
        size: Bytes that it will take, known before it is loaded.
        max_bytes: Most bytes of all Cartridges, those being loaded included.
        wait_s: How long a request waits for a load before it is told to come back.
    """

    def __init__(
        self,
        load: Callable[[Wanted], T],
        size: Callable[[Wanted], int],
        max_bytes: int,
        wait_s: float = 10.0,
    ) -> None:
        self._load, self._size, self.max_bytes, self._wait_s = load, size, max_bytes, wait_s
        self._entries: OrderedDict[str, _Entry[T]] = OrderedDict()
        self._loading: dict[str, asyncio.Task[_Entry[T]]] = {}
        self._reserved: dict[str, int] = {}
        self._pins: set[str] = set()
        self._threads = ThreadPoolExecutor(max_workers=_LOADS_AT_ONCE, thread_name_prefix="load")
        self._counts = CacheCounts()

    @property
    def num_bytes(self) -> int:
        """Bytes of the Cartridges in memory."""
        return sum(entry.num_bytes for entry in self._entries.values())

    @property
    def counts(self) -> CacheCounts:
        """What it did so far."""
        return replace(self._counts, resident_bytes=self.num_bytes)

    @property
    def loading(self) -> int:
        """Loads under way."""
        return len(self._loading)

    def residents(self) -> list[Resident]:
        """What is in memory, least recently used first."""
        return [
            Resident(entry.cartridge, entry.num_bytes, digest in self._pins, entry.in_use)
            for digest, entry in self._entries.items()
        ]

    @asynccontextmanager
    async def lease(self, cartridge: Wanted) -> AsyncIterator[T]:
        """The loaded Cartridge, which stays in memory until the block ends.

        Raises:
            NotLoadedError: It is still loading after `wait_s`, or there is no room.
            ServingError: As the loader raises.
        """
        entry = await self._entry(cartridge)
        entry.in_use += 1
        try:
            yield entry.value
        finally:
            entry.in_use -= 1

    async def load(self, cartridge: Wanted) -> None:
        """Load a Cartridge or a composition before anybody asks for it.

        Raises:
            NotLoadedError, ServingError: As `lease`.
        """
        await self._entry(cartridge)

    async def pin(self, cartridge: Wanted, pinned: bool = True) -> None:
        """Load a Cartridge and keep it whatever comes; or let it go like others."""
        if not pinned:
            self._pins.discard(cartridge.digest)
            return
        await self._entry(cartridge)
        self._pins.add(cartridge.digest)

    def unload(self, digest: str) -> None:
        """Drop a Cartridge and every composition with it, or a composition alone; requests that they answer keep them
        until they end.

        Raises:
            UnknownModelError: It is not in memory.
        """
        holding = [key for key, entry in self._entries.items() if digest in digests_of(entry.cartridge)]
        if not holding:
            raise UnknownModelError(f"Cartridge {digest[:12]} is not in memory.", "List those that are.")
        for key in holding:
            self._pins.discard(key)
            del self._entries[key]

    def close(self) -> None:
        """Drop everything."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._entries.clear()

    async def _entry(self, cartridge: Wanted) -> _Entry[T]:
        entry = self._entries.get(cartridge.digest)
        if entry is not None:
            self._counts.hits += 1
            self._entries.move_to_end(cartridge.digest)
            return entry
        self._counts.misses += 1
        task = self._loading.get(cartridge.digest)
        if task is None:
            self._make_room(cartridge)
            task = self._loading[cartridge.digest] = asyncio.create_task(self._loaded(cartridge))
            task.add_done_callback(lambda done: self._settle(cartridge, done))
        try:
            # Shielded: others wait for the same load, and the next request finds it done.
            return await asyncio.wait_for(asyncio.shield(task), self._wait_s)
        except TimeoutError:
            raise NotLoadedError(
                f"The Cartridge of {cartridge.corpus!r} is being loaded.",
                "Ask again shortly.",
                retry_after=self._wait_s,
            ) from None

    def _make_room(self, cartridge: Wanted) -> None:
        needed = self._size(cartridge)
        if needed > self.max_bytes:
            raise NotLoadedError(
                f"The Cartridge of {cartridge.corpus!r} takes {needed:,} bytes, the cache holds {self.max_bytes:,}.",
                "The operator has to raise cache_bytes.",
            )
        free = self.max_bytes - self.num_bytes - sum(self._reserved.values())
        idle = [d for d, entry in self._entries.items() if not entry.in_use and d not in self._pins]
        if free + sum(self._entries[digest].num_bytes for digest in idle) < needed:
            raise NotLoadedError(
                f"There is no room for the Cartridge of {cartridge.corpus!r}: all others are in use or pinned.",
                "Ask again shortly.",
                retry_after=1.0,
            )
        for digest in idle:
            if free >= needed:
                break
            free += self._entries.pop(digest).num_bytes
            self._counts.evictions += 1
        self._reserved[cartridge.digest] = needed

    async def _loaded(self, cartridge: Wanted) -> _Entry[T]:
        started = time.perf_counter()
        with span("load", {"cartridge.corpus": cartridge.corpus, "cartridge.digest": cartridge.digest}):
            value = await asyncio.get_running_loop().run_in_executor(self._threads, self._load, cartridge)
        self._counts.load_seconds += time.perf_counter() - started
        entry = _Entry(cartridge, value, self._size(cartridge))
        # Here and not in the callback: a waiter may run first, and a second load must not begin meanwhile.
        self._entries[cartridge.digest] = entry
        return entry

    def _settle(self, cartridge: Wanted, done: "asyncio.Task[_Entry[T]]") -> None:
        del self._loading[cartridge.digest], self._reserved[cartridge.digest]
        failed = done.cancelled() or done.exception() is not None
        self._counts.failed_loads += failed
        self._counts.loads += not failed
