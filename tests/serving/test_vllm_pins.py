"""What operators have kept is kept at every server, also at one that was away meanwhile."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from cartridge_core.models import BaseModel
from cartridge_core.serving import replicas, vllm_errands
from cartridge_core.serving.attachment import PARAMETER
from cartridge_core.serving.errors import ArtifactUnavailableError, EngineError, UnknownModelError
from cartridge_core.serving.vllm_engine import VllmConfig, VllmEngine
from cartridge_core.settings import Settings
from tests.samples import cartridge_of
from tests.serving.engines import KEY, StubEngine
from tests.serving.test_fetching import stored


class Shelf:
    """Two Cartridges in a store, and two engines."""

    def __init__(self, base: BaseModel, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.settings = Settings(home=folder / "home", attachment_key=KEY)
        made = [cartridge_of(base, list(range(start, start + 5))) for start in (20, 40)]
        self.clinic, self.law = (stored(self.settings, one, folder / one.digest) for one in made)
        root = self.settings.artifact_root
        self.engines = [StubEngine(folder / name, root, monkeypatch) for name in ("first", "second")]

    @asynccontextmanager
    async def gateway(self) -> AsyncIterator[VllmEngine]:
        urls = tuple(engine.url for engine in self.engines)
        gateway = VllmEngine("reference", 4096, self.settings, VllmConfig(urls))
        await gateway.start()
        try:
            yield gateway
        finally:
            await gateway.close()
            for engine in self.engines:
                await asyncio.to_thread(engine.stop)

    async def up(self, *engines: StubEngine, gateway: VllmEngine) -> None:
        """Start engines and wait until the gateway has seen it."""
        for engine in engines:
            await asyncio.to_thread(engine.start)
        await until(lambda: {engine.url for engine in engines} <= {one.url for one in gateway._replicas.well()})


async def until(true: Callable[[], bool]) -> None:
    for _ in range(600):
        if true():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("It does not come true.")


def kept(engine: StubEngine) -> set[str]:
    """What the engine's door says is pinned."""
    said = httpx.get(f"{engine.url}/cartridges").json()["cartridges"]
    return {one["digest"] for one in said if one["pinned"]}


@pytest.fixture
def shelf(tiny_base: Callable[[str], BaseModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shelf:
    monkeypatch.setattr(vllm_errands, "_SETTLE_S", 0.02)
    monkeypatch.setattr(replicas, "_LOOK_S", 0.1)
    return Shelf(tiny_base("llama"), tmp_path, monkeypatch)


def test_every_server_loads_keeps_and_lets_go(shelf: Shelf) -> None:
    async def run() -> None:
        async with shelf.gateway() as gateway:
            await shelf.up(*shelf.engines, gateway=gateway)
            await gateway.load(shelf.clinic)
            assert [engine.told for engine in shelf.engines] == [["cached"], ["cached"]]
            await gateway.pin(shelf.clinic, True)
            assert [kept(engine) for engine in shelf.engines] == [{shelf.clinic.digest}] * 2
            assert [one.pinned for one in await gateway.residents()] == [True]
            await gateway.pin(shelf.clinic, False)
            assert [kept(engine) for engine in shelf.engines] == [set(), set()]
            await gateway.unload(shelf.clinic.digest)
            # It may be told twice, by the call itself and by who looks after pins.
            told = [list(dict.fromkeys(engine.told)) for engine in shelf.engines]
            assert told == [["cached", "pin", "unpin", "drop"]] * 2
            assert await gateway.residents() == []
            with pytest.raises(UnknownModelError):
                await gateway.unload(shelf.clinic.digest)
            # All is said: nobody is told anything again and again.
            await asyncio.sleep(0.1)
            before = [len(engine.told) for engine in shelf.engines]
            await asyncio.sleep(0.2)
            assert [len(engine.told) for engine in shelf.engines] == before

    asyncio.run(run())


def test_a_server_that_was_away_is_told_when_it_is_back(shelf: Shelf) -> None:
    first, second = shelf.engines

    async def run() -> None:
        async with shelf.gateway() as gateway:
            with pytest.raises(EngineError):
                await gateway.pin(shelf.clinic, True)
            await shelf.up(first, gateway=gateway)
            assert first.told == []  # what was refused is not remembered
            await gateway.pin(shelf.clinic, True)
            assert kept(first) == {shelf.clinic.digest}
            await shelf.up(second, gateway=gateway)
            await until(lambda: kept(second) == {shelf.clinic.digest})
            # One that starts again has forgotten it; the other is not told again.
            await asyncio.to_thread(first.stop)
            await until(lambda: len(gateway._replicas.well()) == 1)
            await shelf.up(first, gateway=gateway)
            await until(lambda: kept(first) == {shelf.clinic.digest})
            assert set(second.told) == {"pin"}
            # One that cannot be reached for a while still keeps what is unpinned meanwhile, until it is told.
            replica = gateway._replicas.all[0]
            await until(lambda: bool(replica.pinned))
            replica.leave_out("does not answer")
            await gateway.pin(shelf.clinic, False)
            await until(lambda: kept(first) == kept(second) == set())

    asyncio.run(run())


def test_one_server_that_cannot_does_not_keep_the_others_from_it(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = shelf.engines
    monkeypatch.setattr(vllm_errands, "_AGAIN_S", 0.02)

    async def run() -> None:
        async with shelf.gateway() as gateway:
            await shelf.up(*shelf.engines, gateway=gateway)
            await gateway.load(shelf.law)
            manifest = Path(shelf.settings.artifact_root, shelf.clinic.artifact_key, "manifest.json")
            away = manifest.rename(manifest.with_name("away"))
            with pytest.raises(ArtifactUnavailableError):
                await gateway.pin(shelf.clinic, True)
            await asyncio.sleep(0.2)  # who looks after pins may be about to try
            # The first one has its files from now on.
            away.rename(manifest)
            signed = gateway._bodies.errand(shelf.clinic, "cached")["kv_transfer_params"][PARAMETER]
            load = {"attachment": signed}
            reply = await asyncio.to_thread(httpx.post, f"{first.url}/cartridges/load", json=load)
            assert reply.status_code == 200 and kept(first) == kept(second) == set()
            manifest.rename(away)
            await gateway.pin(shelf.clinic, True)
            assert (kept(first), kept(second)) == ({shelf.clinic.digest}, set())
            away.rename(manifest)
            await until(lambda: kept(second) == {shelf.clinic.digest})

    asyncio.run(run())
