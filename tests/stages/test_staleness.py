"""What becomes of a corpus whose documents changed depends on what is served, and on what people did with the rest."""

from pathlib import Path

import pytest

from cartridge_core.catalog import CHAMPION, catalog_session, clear_alias, record_tombstone, retire, set_alias
from cartridge_core.catalog.cartridges import cartridge_row
from cartridge_core.errors import CorpusError, NotFoundError
from cartridge_core.settings import Settings
from cartridge_core.stages.ingest import ingest, withdraw_content
from cartridge_core.stages.staleness import Standing, corpus_names, look_again
from tests.catalog.rows import add_cartridge
from tests.samples import embedded
from tests.talkative import write_documents


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return embedded(tmp_path / "home", mlflow_tracking_uri="http://127.0.0.1:1")  # nothing here asks MLflow


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    return write_documents(tmp_path / "documents")


def registered(settings: Settings, documents: Path, seed: int, champion: bool = True) -> int:
    """A Cartridge of the present documents; its number."""
    digest = ingest(settings, "wards", [documents]).digest
    with catalog_session(settings) as session:
        row = add_cartridge(session, "wards", seed, content=digest)
        if champion:
            set_alias(session, "default", "wards", CHAMPION, row.id)
        return row.id


def change(documents: Path, text: str) -> None:
    (documents / "ward.md").write_text(f"# The wards\n\n{text}\n", encoding="utf-8")


def test_the_champion_of_other_content_is_stale(settings: Settings, documents: Path) -> None:
    number = registered(settings, documents, 0)
    assert corpus_names(settings) == ["wards"]
    assert look_again(settings, "wards").standing is Standing.FRESH
    before = look_again(settings, "wards").digest
    change(documents, "The ward of patient 12 is 84.")
    found = look_again(settings, "wards")
    assert found.standing is Standing.STALE
    assert found.digest != before
    assert found.sources == (documents,)
    assert found.champion is not None
    assert found.champion.cartridge_id == number
    with pytest.raises(NotFoundError):
        look_again(settings, "nobodys")


def test_what_is_not_served_is_not_even_read(settings: Settings, documents: Path) -> None:
    number = registered(settings, documents, 0)
    with catalog_session(settings) as session:  # as `cartridge corpus forget --yes` does
        clear_alias(session, "default", "wards", CHAMPION)
        retire(session, cartridge_row(session, "default", number))
    for path in documents.iterdir():
        path.unlink()  # reading would be refused
    found = look_again(settings, "wards")
    assert (found.standing, found.champion) == (Standing.WITHOUT_CHAMPION, None)


def test_content_that_went_back_waits_for_people(settings: Settings, documents: Path) -> None:
    first = (documents / "ward.md").read_text(encoding="utf-8")
    registered(settings, documents, 0)
    change(documents, "The ward of patient 12 is 84.")
    served = registered(settings, documents, 1)
    (documents / "ward.md").write_text(first, encoding="utf-8")
    found = look_again(settings, "wards")
    assert found.standing is Standing.WAITING
    assert found.champion is not None
    assert found.champion.cartridge_id == served


def test_what_the_gate_refused_waits_and_what_was_withdrawn_stays_so(settings: Settings, documents: Path) -> None:
    registered(settings, documents, 0)
    change(documents, "The ward of patient 12 is 84.")
    refused = registered(settings, documents, 1, champion=False)
    assert look_again(settings, "wards").standing is Standing.WAITING
    with catalog_session(settings) as session:
        retire(session, cartridge_row(session, "default", refused))
    assert look_again(settings, "wards").standing is Standing.WITHDRAWN
    with catalog_session(settings) as session:
        record_tombstone(session, cartridge_row(session, "default", refused), [])
    assert look_again(settings, "wards").standing is Standing.WITHDRAWN
    change(documents, "The ward of patient 12 is 85.")
    assert look_again(settings, "wards").standing is Standing.STALE


def test_documents_that_are_elsewhere_and_documents_that_are_empty(settings: Settings, documents: Path) -> None:
    registered(settings, documents, 0)
    documents.rename(documents.with_name("moved"))
    assert look_again(settings, "wards").standing is Standing.UNREADABLE
    documents.mkdir()
    with pytest.raises(CorpusError):
        look_again(settings, "wards")


def test_a_schedule_lets_nothing_in_that_was_withdrawn(settings: Settings, documents: Path) -> None:
    registered(settings, documents, 0)
    (documents / "more.md").write_text("The pharmacy is in house 9.", encoding="utf-8")
    newer = ingest(settings, "wards", [documents])
    more = next(one for one in newer.load().documents if "pharmacy" in one.text)
    withdraw_content(newer, "It was to be forgotten.", [more])
    with pytest.raises(CorpusError, match=r"holds what was withdrawn from it: .*more\.md"):
        look_again(settings, "wards")
    (documents / "more.md").unlink()
    assert look_again(settings, "wards").standing is Standing.FRESH


def test_a_corpus_that_was_withdrawn_as_a_whole(settings: Settings, documents: Path) -> None:
    corpus = ingest(settings, "wards", [documents])
    withdraw_content(corpus, "The corpus was removed.")
    assert look_again(settings, "wards").standing is Standing.WITHOUT_CHAMPION
