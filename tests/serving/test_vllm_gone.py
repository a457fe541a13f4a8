"""What was retired or erased leaves vLLM's servers: every one that has it, also one that was away meanwhile."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import get_args

import httpx
import pytest

from cartridge_core.catalog import catalog_session, find_cartridge
from cartridge_core.models import BaseModel
from cartridge_core.serving import gone, replicas, vllm_errands
from cartridge_core.serving.attachment import Keeping
from cartridge_core.serving.gone import erase_gone
from cartridge_core.serving.resolver import Catalogue, ResolvedCartridge, resolved_of
from cartridge_core.serving.vllm_body import PLACEHOLDER, Bodies
from cartridge_core.serving.vllm_engine import VllmConfig, VllmEngine
from cartridge_core.stages.retire import retire
from tests.serving.engines import KEY, StubEngine
from tests.serving.shop import Shop
from tests.serving.test_vllm_pins import kept, until


class Chain:
    """A catalog with two Cartridges, two engines, and a gateway's engine that follows the catalog."""

    def __init__(self, base: BaseModel, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shop = Shop(base, folder, attachment_key=KEY)
        self.shop.add("clinic", 1)
        self.shop.add("law", 1, "champion")
        root = self.shop.settings.artifact_root
        self.homes = [folder / name for name in ("first", "second")]
        self.engines = [StubEngine(home, root, monkeypatch) for home in self.homes]

    def found(self, corpus: str) -> ResolvedCartridge:
        with catalog_session(self.shop.settings, read_only=True) as session:
            found = resolved_of(find_cartridge(session, "default", corpus, "1"))
        assert found is not None
        return found

    @asynccontextmanager
    async def gateway(self) -> AsyncIterator[VllmEngine]:
        gateway = VllmEngine(
            "reference", 4096, self.shop.settings, VllmConfig(tuple(engine.url for engine in self.engines))
        )
        await gateway.start()
        catalogue = Catalogue(self.shop.settings)
        erasing = asyncio.create_task(erase_gone(catalogue, gateway))
        try:
            yield gateway
        finally:
            erasing.cancel()
            await asyncio.gather(erasing, return_exceptions=True)
            await gateway.close()
            catalogue.close()

    async def up(self, *engines: StubEngine, gateway: VllmEngine) -> None:
        for engine in engines:
            await asyncio.to_thread(engine.start)
        await until(lambda: {engine.url for engine in engines} <= {one.url for one in gateway._replicas.well()})

    def on_disk(self) -> list[set[str]]:
        """Digests of the files on each engine's machine."""
        caches = [home / "cache" for home in self.homes]
        return [{path.name for path in cache.glob("[0-9a-f]*")} for cache in caches]


@pytest.fixture
def chain(tiny_base: Callable[[str], BaseModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Chain]:
    monkeypatch.setattr(vllm_errands, "_SETTLE_S", 0.02)
    monkeypatch.setattr(replicas, "_LOOK_S", 0.1)
    monkeypatch.setattr(gone, "_LOOK_S", 0.05)
    chain = Chain(tiny_base("llama"), tmp_path, monkeypatch)
    yield chain
    for engine in chain.engines:
        engine.stop()


def test_an_errand_that_lets_go_has_nothing_in_front(chain: Chain) -> None:
    clinic, bodies = chain.found("clinic"), Bodies("reference", KEY.encode())
    prompts = {residency: bodies.errand(clinic, residency)["prompt"] for residency in get_args(Keeping)}
    whole = [PLACEHOLDER] * (clinic.num_tokens + 1)
    alone = [PLACEHOLDER]
    assert prompts == {"cached": whole, "pin": whole, "unpin": alone, "drop": alone, "erase": alone}


def test_every_server_lets_it_go_from_memory_and_disk(chain: Chain) -> None:
    clinic, law = chain.found("clinic"), chain.found("law")

    async def run() -> None:
        async with chain.gateway() as gateway:
            await chain.up(*chain.engines, gateway=gateway)
            await gateway.pin(clinic, True)
            await gateway.load(law)
            assert chain.on_disk() == [{clinic.digest, law.digest}] * 2
            await asyncio.sleep(0.3)
            assert not any("erase" in engine.told for engine in chain.engines), "nothing is gone yet"
            await asyncio.to_thread(retire, chain.shop.settings, "clinic", "1")
            await until(lambda: chain.on_disk() == [{law.digest}] * 2)
            # The file is gone before the errand's answer has come back, and only that tells the gateway.
            await until(lambda: clinic.digest not in gateway._errands.known)
            assert [kept(engine) for engine in chain.engines] == [set(), set()]
            assert [(clinic.digest, "erase") in engine.vllm.told for engine in chain.engines] == [True, True]
            assert [one.cartridge.digest for one in await gateway.residents()] == [law.digest]
            # Nobody tells them to keep it again, and once all is said nobody is told anything.
            await asyncio.sleep(0.3)
            before = [len(engine.told) for engine in chain.engines]
            await asyncio.sleep(0.3)
            assert [len(engine.told) for engine in chain.engines] == before
            assert chain.on_disk() == [{law.digest}] * 2

    asyncio.run(run())


def test_a_server_that_was_away_lets_it_go_when_it_is_back(chain: Chain) -> None:
    first, second = chain.engines
    clinic = chain.found("clinic")

    async def run() -> None:
        async with chain.gateway() as gateway:
            await chain.up(first, second, gateway=gateway)
            # Not pinned: the stub that is stopped would hold it as long as this process lives.
            await gateway.load(clinic)
            await asyncio.to_thread(second.stop)
            await until(lambda: len(gateway._replicas.well()) == 1)
            await asyncio.to_thread(retire, chain.shop.settings, "clinic", "1")
            await until(lambda: chain.on_disk() == [set(), {clinic.digest}])
            await chain.up(second, gateway=gateway)
            await until(lambda: chain.on_disk() == [set(), set()])
            assert kept(first) == kept(second) == set()

    asyncio.run(run())


def test_a_gateway_that_never_used_it_has_it_erased_as_well(chain: Chain) -> None:
    first, second = chain.engines
    clinic = chain.found("clinic")

    async def fill() -> None:
        async with chain.gateway() as gateway:
            await chain.up(first, second, gateway=gateway)
            await gateway.load(clinic)

    async def follow() -> None:
        async with chain.gateway() as gateway:
            await until(lambda: len(gateway._replicas.well()) == 2)
            await until(lambda: chain.on_disk() == [set(), set()])

    asyncio.run(fill())
    retire(chain.shop.settings, "clinic", "1")
    asyncio.run(follow())


def test_a_server_that_fails_is_told_again(chain: Chain) -> None:
    first, second = chain.engines
    clinic = chain.found("clinic")

    async def run() -> None:
        async with chain.gateway() as gateway:
            await chain.up(first, second, gateway=gateway)
            await gateway.load(clinic)
            second.vllm.status = 500
            await asyncio.to_thread(retire, chain.shop.settings, "clinic", "1")
            await until(lambda: second.told.count("erase") > 1)
            assert chain.on_disk() == [set(), {clinic.digest}]
            second.vllm.status = 200
            await until(lambda: chain.on_disk() == [set(), set()])
            await until(lambda: httpx.get(f"{second.url}/cartridges").json()["held"] == [])

    asyncio.run(run())


def test_what_no_store_has_any_more_is_unpinned_and_unloaded(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gone, "_LOOK_S", 600.0)
    clinic = chain.found("clinic")

    async def run() -> None:
        async with chain.gateway() as gateway:
            await chain.up(*chain.engines, gateway=gateway)
            await gateway.pin(clinic, True)
            Path(chain.shop.settings.artifact_root, clinic.artifact_key, "manifest.json").unlink()
            for home in chain.homes:
                (home / "cache" / clinic.digest).rename(home / "elsewhere")
            await gateway.pin(clinic, False)
            await gateway.unload(clinic.digest)
            assert [list(dict.fromkeys(engine.told)) for engine in chain.engines] == [["pin", "unpin", "drop"]] * 2

    asyncio.run(run())
