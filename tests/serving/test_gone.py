"""What was retired or erased leaves running gateways by itself: memory, pins, files."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cartridge_core.catalog import Catalog, catalog_session, clear_alias, find_cartridge, record_pin, record_tombstone
from cartridge_core.catalog.cartridges import cartridge_row
from cartridge_core.errors import CatalogError
from cartridge_core.serving import gone
from cartridge_core.stages.local_copies import LocalCopies, cache_folder
from cartridge_core.stages.retire import retire
from tests.conftest import build_tiny_base
from tests.serving.shop import Running, Shop, eventually, running, serving, slow, text_of
from tests.serving.test_composition import graded


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shop:
    monkeypatch.setattr(gone, "_LOOK_S", 0.05)
    shop = Shop(build_tiny_base("qwen2"), tmp_path)
    shop.add("clinic", 1, "champion")
    shop.add("clinic", 2)
    shop.add("law", 1, "champion")
    return shop


@pytest.fixture
def server(shop: Shop) -> Iterator[Running]:
    with serving(shop, composition=True) as found:
        yield found


def erase(shop: Shop, corpus: str, version: int) -> None:
    """What `cartridge delete --force` does to the catalog."""
    with catalog_session(shop.settings) as session:
        entry = find_cartridge(session, "default", corpus, str(version))
        for alias in entry.aliases:
            clear_alias(session, "default", corpus, alias)
        record_tombstone(session, cartridge_row(session, "default", entry.cartridge_id), [])


def digest(shop: Shop, corpus: str, version: int) -> str:
    return shop.cartridges[corpus, version].digest


def test_what_was_retired_or_erased_goes_and_the_rest_stays(shop: Shop, server: Running) -> None:
    graded(shop, ("clinic", 2), ("law", 1))
    server.answer(model="clinic:2+law")
    for model in ("clinic:2", "law", "clinic"):
        server.answer(model=model)
    cache = server.gateway.engine.cache  # type: ignore[attr-defined]  # the local engine's
    assert len(cache.residents()) == 4
    retire(shop.settings, "clinic", "2")
    # The composition with it goes as well.
    kept = {digest(shop, "clinic", 1), digest(shop, "law", 1)}
    assert eventually(lambda: {one.cartridge.digest for one in cache.residents()} == kept)
    assert eventually(lambda: not cache_folder(shop.settings, digest(shop, "clinic", 2)).exists())
    erase(shop, "clinic", 1)
    assert eventually(lambda: [one.cartridge.digest for one in cache.residents()] == [digest(shop, "law", 1)])
    assert eventually(lambda: not cache_folder(shop.settings, digest(shop, "clinic", 1)).exists())
    assert cache_folder(shop.settings, digest(shop, "law", 1)).is_dir()
    assert text_of(server.answer(model="law")) == shop.expected("law").text
    assert server.error(410, model="clinic:2")["code"] == "cartridge_retired"


def test_an_answer_that_is_being_written_ends_as_it_began(shop: Shop, server: Running) -> None:
    cache = server.gateway.engine.cache  # type: ignore[attr-defined]  # the local engine's
    right = shop.expected("clinic", 2, max_tokens=30).text
    with slow(shop, 0.03), ThreadPoolExecutor(1) as pool:
        asked = pool.submit(lambda: server.answer(model="clinic:2", max_tokens=30))
        assert eventually(lambda: running(server) == 1)
        retire(shop.settings, "clinic", "2")
        assert eventually(lambda: cache.residents() == [])
        assert running(server) == 1
        assert text_of(asked.result()) == right


def test_pinned_ones_go_too_and_files_that_somebody_reads_when_that_ends(shop: Shop) -> None:
    with catalog_session(shop.settings) as session:
        record_pin(session, "default", "clinic", "2")
    copies, folder = LocalCopies(shop.settings), cache_folder(shop.settings, digest(shop, "clinic", 2))
    with serving(shop) as server:
        cache = server.gateway.engine.cache  # type: ignore[attr-defined]  # the local engine's
        assert eventually(lambda: [one.pinned for one in cache.residents()] == [True])
        held = copies.hold(digest(shop, "clinic", 2))
        assert held is not None
        with held:
            retire(shop.settings, "clinic", "2")
            assert eventually(lambda: cache.residents() == [])
            assert folder.is_dir()
        assert eventually(lambda: not folder.exists())


def test_a_catalog_that_is_down_is_asked_again(shop: Shop, server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = server.gateway.engine.cache  # type: ignore[attr-defined]  # the local engine's
    server.answer(model="clinic:2")
    asked = list[int]()

    def down() -> Catalog:
        asked.append(1)
        raise CatalogError("down")

    with monkeypatch.context() as broken:
        broken.setattr(server.gateway.catalogue, "open", down)
        retire(shop.settings, "clinic", "2")
        assert eventually(lambda: len(asked) > 2)
        assert len(cache.residents()) == 1
    assert eventually(lambda: cache.residents() == [])
