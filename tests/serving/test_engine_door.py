"""The door in front of vLLM: files that a request needs stay on this machine until it is answered."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from cartridge_core.cartridge import Cartridge
from cartridge_core.models import BaseModel
from cartridge_core.serving.engine_door import EngineDoor
from cartridge_core.serving.resolver import ResolvedCartridge
from cartridge_core.serving.vllm_body import Bodies
from cartridge_core.settings import Settings
from cartridge_core.stages.local_copies import LocalCopies, cache_folder
from tests.samples import cartridge_of
from tests.serving.engines import KEY, StubVllm
from tests.serving.test_fetching import stored


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name, value in {"HOME": str(tmp_path / "home"), "ATTACHMENT_KEY": KEY}.items():
        monkeypatch.setenv(f"CARTRIDGE_{name}", value)
    return Settings()


@pytest.fixture
def three(
    settings: Settings, tiny_base: Callable[[str], BaseModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> list[ResolvedCartridge]:
    """Three Cartridges in a store, and room for one on this machine."""
    made: list[Cartridge] = [cartridge_of(tiny_base("llama"), list(range(start, start + 5))) for start in (20, 40, 60)]
    found = [stored(settings, one, tmp_path / one.digest) for one in made]
    size = sum(path.stat().st_size for path in (tmp_path / made[0].digest).iterdir())
    monkeypatch.setenv("CARTRIDGE_LOCAL_COPY_BYTES", str(size * 3 // 2))
    return found


def test_files_in_use_or_pinned_stay_and_others_make_room(settings: Settings, three: list[ResolvedCartridge]) -> None:
    first, second, third = three

    def there() -> list[bool]:
        return [cache_folder(settings, one.digest).is_dir() for one in three]

    async def run() -> None:
        vllm, bodies = StubVllm(), Bodies("reference", KEY.encode())
        transport = httpx.ASGITransport(EngineDoor(vllm.application()))
        async with httpx.AsyncClient(transport=transport, base_url="http://engine") as client:

            async def ask(one: ResolvedCartridge, residency: str = "cached") -> httpx.Response:
                body = bodies.errand(one, residency)  # type: ignore[arg-type]
                return await client.post("/v1/completions", json=body)

            slow = asyncio.create_task(ask(first))
            while not vllm.told:
                await asyncio.sleep(0.01)
            refused = await ask(second)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "cartridge_not_loaded")
            assert refused.headers["retry-after"] == "5" and str(settings.home) not in refused.text
            assert there() == [True, False, False]
            vllm.answer.set()
            assert (await slow).status_code == 200
            # Answered, and so it makes room.
            assert (await ask(second)).status_code == 200 and there() == [False, True, False]
            assert (await ask(first)).status_code == 200 and there() == [True, False, False]
            assert (await ask(first, "pin")).status_code == 200
            said = (await client.get("/cartridges")).json()
            assert [(one["digest"], one["pinned"]) for one in said["cartridges"]] == [(first.digest, True)]
            assert (await ask(third)).status_code == 503 and there() == [True, False, False]
            assert (await ask(first, "drop")).status_code == 200
            assert (await ask(third)).status_code == 200 and there() == [False, False, True]

    asyncio.run(run())


def test_what_is_erased_goes_from_the_disk_when_nobody_uses_it(
    settings: Settings, three: list[ResolvedCartridge], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CARTRIDGE_LOCAL_COPY_BYTES", str(1 << 30))
    first, second, never = three

    async def run() -> None:
        vllm, bodies = StubVllm(), Bodies("reference", KEY.encode())
        transport = httpx.ASGITransport(EngineDoor(vllm.application()))
        async with httpx.AsyncClient(transport=transport, base_url="http://engine") as client:

            async def ask(one: ResolvedCartridge, residency: str = "cached") -> int:
                body = bodies.errand(one, residency)  # type: ignore[arg-type]
                return (await client.post("/v1/completions", json=body)).status_code

            async def held() -> list[str]:
                found: list[str] = (await client.get("/cartridges")).json()["held"]
                return found

            vllm.answer.set()
            assert [await ask(first, "pin"), await ask(second)] == [200, 200]
            assert await held() == sorted([first.digest, second.digest])
            vllm.status = 500
            # vLLM may have it in memory still, so the door goes on to say that it is here.
            assert await ask(second, "erase") == 500 and second.digest in await held()
            vllm.status = 200
            assert await ask(second, "erase") == 200 and await held() == [first.digest]
            assert not cache_folder(settings, second.digest).exists()
            held_elsewhere = LocalCopies(settings).hold(first.digest)
            assert held_elsewhere is not None
            with held_elsewhere:
                # Its pin is over, its files stay as long as somebody reads them.
                assert await ask(first, "erase") == 200 and await held() == [first.digest]
                assert not any(one["pinned"] for one in (await client.get("/cartridges")).json()["cartridges"])
            assert await ask(first, "erase") == 200 and await held() == []
            # Who lets go of something has nothing fetched for it.
            for residency in ("unpin", "drop", "erase"):
                assert await ask(never, residency) == 200 and await held() == []
            # What came back is served again.
            assert await ask(first) == 200 and await held() == [first.digest]

    asyncio.run(run())


def test_files_of_a_process_before_are_told_of(settings: Settings, three: list[ResolvedCartridge]) -> None:
    copies = LocalCopies(settings)
    with copies.fetch(three[0].digest, three[0].artifact_key):
        pass
    (settings.home / "cache" / ".arriving-3-x").mkdir()

    async def run() -> None:
        transport = httpx.ASGITransport(EngineDoor(StubVllm().application()))
        async with httpx.AsyncClient(transport=transport, base_url="http://engine") as client:
            said = (await client.get("/cartridges")).json()
            assert (said["cartridges"], said["held"]) == ([], [three[0].digest])

    asyncio.run(run())
