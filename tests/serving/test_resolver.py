"""Names to Cartridges on a real catalog, also one that breaks."""

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from cartridge_core.catalog import (
    Whereabouts,
    catalog_session,
    clear_alias,
    record_evaluation,
    record_registration,
    record_tombstone,
    retire,
    set_alias,
)
from cartridge_core.catalog.models import CartridgeRow
from cartridge_core.errors import CatalogError
from cartridge_core.registry import model_name
from cartridge_core.serving.errors import (
    CatalogDownError,
    GoneError,
    NotPromotedError,
    ServingError,
    UnknownModelError,
    WrongBaseModelError,
)
from cartridge_core.serving.model_name import CorpusReference
from cartridge_core.serving.remembered import Freshness, Remembered
from cartridge_core.serving.resolver import Catalogue, Resolver
from cartridge_core.settings import Settings
from tests.catalog.rows import add_cartridge
from tests.samples import REFERENCE

OTHER = REFERENCE.model_copy(update={"id": "other", "revision": "r9"})
T = TypeVar("T")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path)


def register(session: Any, row: CartridgeRow, corpus: str, version: int, tenant: str = "default") -> None:
    base = OTHER if "other" in row.manifest["base_model"]["id"] else REFERENCE
    name = model_name(tenant, corpus, base.id)
    key = f"{tenant}/cartridges/{row.digest}"
    record_registration(session, row, Whereabouts(name, version, "m", "r", f"/x/{key}", key, 3000))


def add(
    settings: Settings, seed: int, version: int, alias: str | None = None, corpus: str = "clinic", **more: Any
) -> str:
    """Register a Cartridge, point an alias at it, and return its digest."""
    with catalog_session(settings) as session:
        row = add_cartridge(session, corpus, seed, **more)
        tenant = more.get("tenant", "default")
        register(session, row, corpus, version, tenant)
        if alias:
            set_alias(session, tenant, corpus, alias, row.id)
        return row.digest


def ask(settings: Settings, *references: CorpusReference, tenant: str = "default") -> list[Any]:
    """What a new resolver says to each, refusals as values."""

    async def all_of_them() -> list[Any]:
        catalogue = Catalogue(settings)
        resolver = Resolver(catalogue, REFERENCE)
        said = [resolver.resolve(tenant, reference) for reference in references]
        answers = await asyncio.gather(*said, return_exceptions=True)
        resolver.close()
        catalogue.close()
        return answers

    return asyncio.run(all_of_them())


def test_aliases_and_versions(settings: Settings) -> None:
    first, second = add(settings, 0, 1, "champion"), add(settings, 1, 2, "canary")
    with catalog_session(settings) as session:
        row = session.get_one(CartridgeRow, 1)
        record_evaluation(
            session,
            row,
            digest="e" * 64,
            benchmark="closed_answer",
            num_questions=240,
            score=0.9,
            icl_score=1.0,
            figures={"icl_tokens": 606},
            report_key="r",
        )
    champion, canary, old = ask(
        settings, CorpusReference("clinic"), CorpusReference("clinic", "canary"), CorpusReference("clinic", None, 1)
    )
    assert (champion.digest, champion.version, champion.alias, champion.aliases) == (
        first,
        1,
        "champion",
        ("champion",),
    )
    assert (canary.digest, canary.version, canary.alias) == (second, 2, "canary")
    assert (old.digest, old.alias) == (first, None)
    assert (champion.num_tokens, champion.artifact_key) == (6, f"default/cartridges/{first}")
    assert (champion.score, champion.icl_score, champion.num_questions) == (0.9, 1.0, 240)
    assert (champion.saved_tokens, champion.saved_bytes) == (600, 600 * champion.kv_bytes // 6)
    assert canary.saved_tokens is None
    assert champion.describe()["evaluation"]["icl_tokens"] == 606


def test_refusals_are_typed(settings: Settings) -> None:
    add(settings, 0, 1)
    add(settings, 1, 2)
    add(settings, 2, 1, "champion", "law", base_model=OTHER)
    with catalog_session(settings) as session:
        retire(session, session.get_one(CartridgeRow, 1))
        record_tombstone(session, session.get_one(CartridgeRow, 2), [])
    for reference, kind, status, code in [
        (CorpusReference("nope"), UnknownModelError, 404, "model_not_found"),
        (CorpusReference("clinic"), NotPromotedError, 404, "not_promoted"),
        (CorpusReference("clinic", "canary"), UnknownModelError, 404, "model_not_found"),
        (CorpusReference("clinic", None, 9), UnknownModelError, 404, "model_not_found"),
        (CorpusReference("clinic", None, 1), GoneError, 410, "cartridge_retired"),
        (CorpusReference("clinic", None, 2), GoneError, 410, "cartridge_erased"),
        (CorpusReference("law"), WrongBaseModelError, 422, "wrong_base_model"),
        (CorpusReference("law", None, 1), WrongBaseModelError, 422, "wrong_base_model"),
    ]:
        (said,) = ask(settings, reference)
        assert type(said) is kind, (reference, said)
        assert (said.status, said.code) == (status, code)
    assert "other at revision r9" in str(said)


def test_a_version_counts_for_this_base_model(settings: Settings) -> None:
    add(settings, 5, 1, base_model=OTHER)
    ours = add(settings, 6, 1)
    add(settings, 7, 1, base_model=OTHER)
    (found,) = ask(settings, CorpusReference("clinic", None, 1))
    assert found.digest == ours


def test_a_tenant_sees_only_its_own(settings: Settings) -> None:
    add(settings, 0, 1, "champion", tenant="acme")
    assert isinstance(ask(settings, CorpusReference("clinic"))[0], UnknownModelError)
    assert ask(settings, CorpusReference("clinic"), tenant="acme")[0].tenant == "acme"


def test_corpora_with_their_aliases(settings: Settings) -> None:
    first = add(settings, 0, 1, "canary")
    second = add(settings, 1, 2, "champion")
    add(settings, 2, 1, "champion", "law", base_model=OTHER)

    async def listed() -> Any:
        return await Resolver(Catalogue(settings), REFERENCE).corpora("default")

    clinic, law = asyncio.run(listed())
    assert [(c.alias, c.digest) for c in clinic.cartridges] == [("champion", second), ("canary", first)]
    assert (law.name, law.cartridges) == ("law", ())


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_an_alias_that_moved_is_seen_after_moments(settings: Settings) -> None:
    old = add(settings, 0, 1, "champion")

    async def moved() -> list[str]:
        resolver = Resolver(Catalogue(settings), REFERENCE)
        clock = Clock()
        resolver._found._clock = clock
        seen = [(await resolver.resolve("default", CorpusReference("clinic"))).digest]
        new = add(settings, 1, 2, "champion")
        for seconds in (1.9, 0.2):
            clock.now += seconds
            seen.append((await resolver.resolve("default", CorpusReference("clinic"))).digest)
        assert seen == [old, old, new]
        with catalog_session(settings) as session:
            clear_alias(session, "default", "clinic", "champion")
        resolver.forget()
        with pytest.raises(NotPromotedError):
            await resolver.resolve("default", CorpusReference("clinic"))
        return seen

    asyncio.run(moved())


def test_a_broken_database_is_outlived_for_a_minute(settings: Settings, tmp_path: Path) -> None:
    digest = add(settings, 0, 1, "champion")
    file = tmp_path / "catalog.db"
    good = file.read_bytes()

    async def outlive() -> None:
        resolver = Resolver(Catalogue(settings), REFERENCE)
        resolver._found._clock = clock = Clock()
        clinic, gone = CorpusReference("clinic"), CorpusReference("gone")
        assert (await resolver.resolve("default", clinic)).digest == digest
        with pytest.raises(UnknownModelError):
            await resolver.resolve("default", gone)
        file.write_bytes(b"\xff" * len(good))
        clock.now += 59
        assert (await resolver.resolve("default", clinic)).digest == digest
        with pytest.raises(UnknownModelError):
            await resolver.resolve("default", gone)
        with pytest.raises(CatalogDownError) as down:
            await resolver.resolve("default", CorpusReference("never-asked"))
        assert (down.value.status, down.value.retry_after) == (503, 1.0)
        clock.now += 2
        with pytest.raises(CatalogDownError):
            await resolver.resolve("default", clinic)
        file.write_bytes(good)
        clock.now += 2
        assert (await resolver.resolve("default", clinic)).digest == digest

    asyncio.run(outlive())


def remembering(ask: Callable[[str], T], **freshness: float) -> Remembered[str, T]:
    return Remembered(ask, Freshness(**freshness))  # type: ignore[arg-type]


def test_many_ask_once() -> None:
    calls: list[str] = []
    gate = threading.Event()

    def slow(key: str) -> int:
        calls.append(key)
        gate.wait(5)
        return len(calls)

    async def many() -> list[int]:
        memory = remembering(slow)
        asking = [asyncio.create_task(memory.get("a")) for _ in range(20)]
        await asyncio.sleep(0.05)
        asking[0].cancel()
        gate.set()
        return await asyncio.gather(*asking[1:])

    assert asyncio.run(many()) == [1] * 19
    assert calls == ["a"]


def test_a_database_that_hangs_counts_as_down_and_is_left_alone() -> None:
    calls: list[str] = []
    release = threading.Event()

    def hang(key: str) -> int:
        calls.append(key)
        release.wait(10)
        raise CatalogError("gone")

    async def hangs() -> None:
        memory = remembering(hang, timeout_s=0.05)
        for key in ("a", "b", "b"):
            with pytest.raises(CatalogDownError):
                await memory.get(key)
        release.set()

    asyncio.run(hangs())
    assert calls == ["a"]


def test_memory_is_bounded() -> None:
    def refuse(key: str) -> int:
        raise UnknownModelError(f"no {key}")

    async def flood() -> int:
        memory = remembering(refuse, max_entries=10)
        for number in range(50):
            with pytest.raises(ServingError):
                await memory.get(str(number))
        return len(memory._answers)

    assert asyncio.run(flood()) == 10
