import json
from pathlib import Path

import pytest

from cartridge_core.corpus import Corpus, Document, Skipped
from cartridge_core.errors import ArtifactError

CORPUS = Corpus(
    "clinic",
    (
        Document("d/a.md", "A", "text/markdown", "line\n\u2028separator\x85", {"author": "ö"}),
        Document("d/b.txt", "B", "text/plain", "two"),
    ),
    (Skipped("d/c.pdf", "unsupported file type .pdf"),),
)


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    CORPUS.save(tmp_path / "c")
    loaded = Corpus.load(tmp_path / "c")
    assert loaded == CORPUS
    assert loaded.digest == CORPUS.digest
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["corpus.json", "documents.jsonl"]


def test_the_digest_is_of_content_and_order() -> None:
    first, second = CORPUS.documents
    assert Corpus("other", CORPUS.documents).digest == CORPUS.digest
    assert Corpus("clinic", (second, first)).digest != CORPUS.digest
    assert Document("elsewhere", "B", "text/plain", "two").digest == second.digest
    for other in (
        Document("d/b.txt", "C", "text/plain", "two"),
        Document("d/b.txt", "B", "text/markdown", "two"),
        Document("d/b.txt", "B", "text/plain", "2"),
        Document("d/b.txt", "B", "text/plain", "two", {"a": "b"}),
    ):
        assert other.digest != second.digest


def test_a_changed_corpus_is_refused(tmp_path: Path) -> None:
    CORPUS.save(tmp_path)
    documents = tmp_path / "documents.jsonl"
    documents.write_text(documents.read_text().replace("two", "too"))
    with pytest.raises(ArtifactError, match=r"documents\.jsonl has digest .* Add the corpus again"):
        Corpus.load(tmp_path)


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"format_version": 2}'])
def test_a_broken_manifest_is_refused(tmp_path: Path, content: str) -> None:
    CORPUS.save(tmp_path)
    (tmp_path / "corpus.json").write_text(content)
    with pytest.raises(ArtifactError):
        Corpus.load(tmp_path)


def test_without_a_manifest_nothing_is_trusted(tmp_path: Path) -> None:
    CORPUS.save(tmp_path)
    (tmp_path / "corpus.json").unlink()
    with pytest.raises(ArtifactError, match="no complete corpus"):
        Corpus.load(tmp_path)


def test_a_document_of_another_shape_is_refused(tmp_path: Path) -> None:
    CORPUS.save(tmp_path)
    (tmp_path / "documents.jsonl").write_text(json.dumps({"uri": "a"}) + "\n")
    with pytest.raises(ArtifactError, match="cannot be read"):
        Corpus.load(tmp_path)
