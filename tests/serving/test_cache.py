"""What is kept in memory, and for whom."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from cartridge_core.serving.cache import CartridgeCache
from cartridge_core.serving.errors import ArtifactUnavailableError, NotLoadedError, UnknownModelError
from cartridge_core.serving.resolver import ResolvedCartridge
from tests.samples import REFERENCE

ONE = ResolvedCartridge(
    "default", "clinic", 1, "champion", ("champion",), "d1", REFERENCE, 10, 100, "key", "c", "2026-01-01T00:00:00+00:00"
)


def cartridge(digest: str, num_bytes: int = 100) -> ResolvedCartridge:
    return replace(ONE, digest=digest, kv_bytes=num_bytes)


class Loader:
    """Counts loads; each waits until it may go on."""

    def __init__(self) -> None:
        self.loads: list[str] = []
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self.fail = False

    def __call__(self, wanted: ResolvedCartridge) -> str:
        self.loads.append(wanted.digest)
        self.may_go_on.wait(5)
        if self.fail:
            raise ArtifactUnavailableError("down")
        return f"loaded {wanted.digest}"


def in_cache(
    work: Callable[[CartridgeCache[str], Loader], Awaitable[None]], max_bytes: int = 250, wait_s: float = 5.0
) -> None:
    async def run() -> None:
        loader = Loader()
        cache = CartridgeCache(loader, lambda wanted: wanted.kv_bytes, max_bytes, wait_s)
        await work(cache, loader)
        assert cache.num_bytes <= max_bytes
        cache.close()

    asyncio.run(run())


def digests(cache: CartridgeCache[str]) -> list[str]:
    return [resident.cartridge.digest for resident in cache.residents()]


def test_the_least_recently_used_goes_first() -> None:
    async def work(cache: CartridgeCache[str], loader: Loader) -> None:
        for digest in ("a", "b", "a", "c"):
            async with cache.lease(cartridge(digest)) as value:
                assert value == f"loaded {digest}"
        assert digests(cache) == ["a", "c"]
        assert loader.loads == ["a", "b", "c"]
        assert (cache.counts.hits, cache.counts.misses, cache.counts.loads, cache.counts.evictions) == (1, 3, 3, 1)

    in_cache(work)


def test_one_load_for_all_who_wait_also_when_the_first_goes_away() -> None:
    async def work(cache: CartridgeCache[str], loader: Loader) -> None:
        async def use() -> str:
            async with cache.lease(cartridge("a")) as value:
                return value

        loader.may_go_on.clear()
        tasks = [asyncio.create_task(use()) for _ in range(8)]
        await asyncio.sleep(0.02)
        tasks[0].cancel()
        loader.may_go_on.set()
        assert await asyncio.gather(*tasks[1:]) == ["loaded a"] * 7
        assert loader.loads == ["a"]

    in_cache(work)


def test_what_is_pinned_or_in_use_stays() -> None:
    async def work(cache: CartridgeCache[str], loader: Loader) -> None:
        await cache.pin(cartridge("pinned"))
        async with cache.lease(cartridge("used")):
            with pytest.raises(NotLoadedError, match="no room") as refusal:
                await cache.load(cartridge("c"))
            assert refusal.value.retry_after == 1.0
            assert [(r.pinned, r.in_use) for r in cache.residents()] == [(True, 0), (False, 1)]
        await cache.load(cartridge("c"))
        assert digests(cache) == ["pinned", "c"]
        await cache.pin(cartridge("pinned"), False)
        await cache.load(cartridge("d"))
        assert digests(cache) == ["c", "d"]

    in_cache(work)


def test_loads_count_before_they_end() -> None:
    async def work(cache: CartridgeCache[str], loader: Loader) -> None:
        loader.may_go_on.clear()
        loading = [asyncio.create_task(cache.load(cartridge(digest))) for digest in ("a", "b")]
        await asyncio.sleep(0.02)
        with pytest.raises(NotLoadedError, match="no room"):
            await cache.load(cartridge("c"))
        loader.may_go_on.set()
        await asyncio.gather(*loading)

    in_cache(work)


def test_a_slow_load_answers_later_requests() -> None:
    async def work(cache: CartridgeCache[str], loader: Loader) -> None:
        loader.may_go_on.clear()
        with pytest.raises(NotLoadedError, match="is being loaded") as refusal:
            await cache.load(cartridge("a"))
        assert (refusal.value.status, refusal.value.retry_after) == (503, 0.05)
        loader.may_go_on.set()
        while cache.loading:
            await asyncio.sleep(0.01)
        await cache.load(cartridge("a"))
        assert loader.loads == ["a"]

    in_cache(work, wait_s=0.05)


def test_a_failed_load_is_told_to_all_and_tried_again() -> None:
    async def work(cache: CartridgeCache[str], loader: Loader) -> None:
        loader.fail = True
        said = await asyncio.gather(*(cache.load(cartridge("a")) for _ in range(3)), return_exceptions=True)
        assert [type(each) for each in said] == [ArtifactUnavailableError] * 3
        assert loader.loads == ["a"]
        loader.fail = False
        await cache.load(cartridge("a"))
        assert (cache.counts.failed_loads, cache.counts.loads) == (1, 1)

    in_cache(work)


def test_one_that_is_too_large_and_unloading() -> None:
    async def work(cache: CartridgeCache[str], loader: Loader) -> None:
        with pytest.raises(NotLoadedError, match="takes 251 bytes, the cache holds 250"):
            await cache.load(cartridge("a", 251))
        await cache.pin(cartridge("a"))
        cache.unload("a")
        assert digests(cache) == []
        with pytest.raises(UnknownModelError, match="not in memory"):
            cache.unload("a")

    in_cache(work)
