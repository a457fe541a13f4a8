"""Which version of a corpus counts: the one that was read last and not withdrawn."""

import json
from pathlib import Path

import pytest

from cartridge_core.errors import CorpusError, NotFoundError
from cartridge_core.settings import Settings
from cartridge_core.stages.ingest import IngestedCorpus, corpora, find_corpus, ingest, withdraw_content
from cartridge_core.stages.reading import RECORD
from tests.samples import embedded


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return embedded(tmp_path / "home")


def read(settings: Settings, folder: Path, readmit: bool = True, **texts: str) -> IngestedCorpus:
    """A corpus of these documents."""
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        path.unlink()
    for name, text in texts.items():
        (folder / f"{name}.md").write_text(text, encoding="utf-8")
    return ingest(settings, "wards", [folder], readmit=readmit)


def test_content_that_comes_back_is_the_newest_again(settings: Settings, tmp_path: Path) -> None:
    first = read(settings, tmp_path / "documents", ada="The ward of Ada is 1.")
    second = read(settings, tmp_path / "documents", ada="The ward of Ada is 2.")
    assert find_corpus(settings, "wards").digest == second.digest
    back = read(settings, tmp_path / "documents", ada="The ward of Ada is 1.")
    assert (back.digest, back.product.cached) == (first.digest, True)
    assert find_corpus(settings, "wards").digest == first.digest
    assert find_corpus(settings, "wards").sources == (tmp_path / "documents",)
    assert find_corpus(settings, "wards", second.digest[:8]).digest == second.digest


def test_a_store_from_before_readings_were_written_down(settings: Settings, tmp_path: Path) -> None:
    first = read(settings, tmp_path / "documents", ada="The ward of Ada is 1.")
    (first.product.directory / RECORD).unlink()
    assert find_corpus(settings, "wards").sources == (tmp_path / "documents",)
    second = read(settings, tmp_path / "documents", ada="The ward of Ada is 2.")
    assert [one.digest for one in corpora(settings)] == [first.digest, second.digest]


def test_what_was_withdrawn_does_not_count_until_a_person_adds_it_again(settings: Settings, tmp_path: Path) -> None:
    folder = tmp_path / "documents"
    first = read(settings, folder, ada="The ward of Ada is 1.")
    second = read(settings, folder, ada="The ward of Ada is 1.", bo="The ward of Bo is 2.")
    bo = next(one for one in second.load().documents if "Bo" in one.text)
    withdraw_content(second, "Bo wished it.", [bo])
    assert find_corpus(settings, "wards").digest == first.digest
    with pytest.raises(NotFoundError, match="was withdrawn: Bo wished it"):
        find_corpus(settings, "wards", second.digest)
    # A schedule reads the folder again: neither the same content nor other content with the same document comes back.
    for more in ({}, {"cy": "The ward of Cy is 3."}):
        with pytest.raises(CorpusError, match=r"holds what was withdrawn from it: .*bo\.md"):
            read(settings, folder, False, ada="The ward of Ada is 1.", bo="The ward of Bo is 2.", **more)
    with pytest.raises(CorpusError, match=r"bo\.md"):
        read(settings, folder, False, bo="The ward of Bo is another one.")
    assert find_corpus(settings, "wards").digest == first.digest
    without = read(settings, folder, False, ada="The ward of Ada is 1.", cy="The ward of Cy is 3.")
    assert find_corpus(settings, "wards").digest == without.digest
    # A person may.
    read(settings, folder, ada="The ward of Ada is 1.", bo="The ward of Bo is 2.")
    assert find_corpus(settings, "wards").digest == second.digest
    read(settings, folder, False, bo="The ward of Bo is 2.")


def test_a_whole_corpus_is_withdrawn(settings: Settings, tmp_path: Path) -> None:
    corpus = read(settings, tmp_path / "documents", ada="The ward of Ada is 1.")
    withdraw_content(corpus, "The corpus was removed.")
    with pytest.raises(NotFoundError, match="The corpus was removed") as refusal:
        find_corpus(settings, "wards")
    assert "add it again" in refusal.value.remedy
    told = json.loads((corpus.product.directory / RECORD).read_text(encoding="utf-8"))
    assert corpus.load().documents[0].digest in told["documents"]
    with pytest.raises(CorpusError, match="holds what was withdrawn"):
        ingest(settings, "wards", corpus.sources, readmit=False)
