import os
from pathlib import Path

import pytest

from cartridge_core.corpus import Corpus, read_corpus
from cartridge_core.errors import CorpusError


def write(root: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def skipped(corpus: Corpus) -> dict[str, str]:
    return {entry.uri: entry.reason for entry in corpus.skipped}


def test_reads_text_and_markdown_below_a_folder_in_order(tmp_path: Path) -> None:
    root = write(
        tmp_path / "docs",
        {
            "b.txt": "second\n",
            "a/staff_hand-book.md": "no heading\n",
            "c.MARKDOWN": "intro\n\n## The title ##\n\nbody\n",
        },
    )
    corpus = read_corpus("clinic", [root])
    assert [(d.uri, d.title, d.media_type, d.text) for d in corpus.documents] == [
        ("docs/a/staff_hand-book.md", "staff hand book", "text/markdown", "no heading"),
        ("docs/b.txt", "b", "text/plain", "second"),
        ("docs/c.MARKDOWN", "The title", "text/markdown", "intro\n\n\nbody"),
    ]
    assert corpus.skipped == ()
    assert corpus.text() == ("From: staff hand book\nno heading\n\nFrom: b\nsecond\n\nFrom: The title\nintro\n\n\nbody")


@pytest.mark.parametrize(
    ("content", "title", "text"),
    [
        ("# A #1 day\nx", "A #1 day", "x"),
        ("Under\n===\nx", "Under", "x"),
        ("```sh\n# comment\n```\n# Real\nx", "Real", "```sh\n# comment\n```\nx"),
        ("#hashtag\nx", "doc", "#hashtag\nx"),
        ("#\n# Named\nx", "Named", "#\nx"),
        ("\ufeff# Bom\r\nline\rother", "Bom", "line\nother"),
    ],
)
def test_the_first_heading_is_the_title(tmp_path: Path, content: str, title: str, text: str) -> None:
    corpus = read_corpus("x", [write(tmp_path / "d", {"doc.md": content})])
    assert (corpus.documents[0].title, corpus.documents[0].text) == (title, text)


def test_a_heading_of_plain_text_stays(tmp_path: Path) -> None:
    document = read_corpus("x", [write(tmp_path / "d", {"doc.txt": "# not markdown"})]).documents[0]
    assert (document.title, document.text) == ("doc", "# not markdown")


def test_every_file_that_is_not_read_is_named_with_a_reason(tmp_path: Path) -> None:
    root = write(
        tmp_path / "d",
        {
            "good.txt": "text",
            "empty.txt": "",
            "blank.md": " \n\t\n",
            "only-title.md": "# Title\n",
            "binary.txt": b"a\0b",
            "latin.txt": "café".encode("latin-1"),
            "wide.txt": "text".encode("utf-16"),
            "scan.pdf": b"%PDF",
            "LICENSE": "text",
            ".hidden.txt": "text",
            ".git/objects/a.txt": "text",
            ".git/objects/b.txt": "text",
        },
    )
    os.mkfifo(root / "pipe.txt")
    (root / "broken.txt").symlink_to(root / "nowhere")
    (root / "loop.txt").symlink_to(root / "loop.txt")
    corpus = read_corpus("x", [root])
    assert [document.uri for document in corpus.documents] == ["d/good.txt"]
    assert skipped(corpus) == {
        "d/empty.txt": "empty",
        "d/blank.md": "empty",
        "d/only-title.md": "empty",
        "d/binary.txt": "binary",
        "d/latin.txt": "not UTF-8",
        "d/wide.txt": "not UTF-8",
        "d/scan.pdf": "unsupported file type .pdf",
        "d/LICENSE": "unsupported file type (none)",
        "d/.hidden.txt": "hidden",
        "d/.git/": "hidden",
        "d/pipe.txt": "not a regular file",
        "d/broken.txt": "unreadable",
        "d/loop.txt": "unreadable",
    }
    assert corpus.skipped_by_reason()["empty"] == 3


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_named(tmp_path: Path) -> None:
    root = write(tmp_path / "d", {"good.txt": "text", "secret.txt": "text", "closed/a.txt": "text"})
    (root / "secret.txt").chmod(0)
    (root / "closed").chmod(0)
    try:
        assert skipped(read_corpus("x", [root])) == {"d/secret.txt": "unreadable", "d/closed": "unreadable"}
    finally:
        (root / "closed").chmod(0o700)


def test_no_link_leads_out_of_the_folder(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "outside/secret.txt": "secret",
            "root/in/a.txt": "text",
            "root-2/b.txt": "a neighbour whose name begins alike",
        },
    )
    root = tmp_path / "root"
    (root / "file.txt").symlink_to(tmp_path / "outside" / "secret.txt")
    (root / "beside.txt").symlink_to(tmp_path / "root-2" / "b.txt")
    (root / "up.txt").symlink_to("../outside/secret.txt")
    (root / "folder").symlink_to(tmp_path / "outside")
    (root / "again").symlink_to(root / "in")
    corpus = read_corpus("x", [root])
    assert [document.text for document in corpus.documents] == ["text"]
    assert skipped(corpus) == {
        "root/file.txt": "leads out of the named folder",
        "root/beside.txt": "leads out of the named folder",
        "root/up.txt": "leads out of the named folder",
        "root/folder/": "leads out of the named folder",
        "root/again/": "link to a folder that is read at its own place",
    }


def test_a_mounted_config_map_is_read_once(tmp_path: Path) -> None:
    """Kubernetes mounts files as links into a hidden folder beside them."""
    root = write(tmp_path / "d", {"..2025/a.md": "text"})
    (root / "..data").symlink_to("..2025")
    (root / "a.md").symlink_to("..data/a.md")
    (root / "b.md").symlink_to("..data/a.md")
    corpus = read_corpus("x", [root])
    assert [document.uri for document in corpus.documents] == ["d/a.md"]
    assert skipped(corpus)["d/b.md"] == "the same file was already read"


def test_the_same_content_is_the_same_version(tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {"a.md": "# A\none", "b.txt": "two"}
    first = read_corpus("x", [write(tmp_path / "here", files)])
    again = read_corpus("other-name", [write(tmp_path / "there" / "docs", {**files, "scan.pdf": b"%PDF"})])
    windows = read_corpus("x", [write(tmp_path / "w", {"a.md": "# A\r\none\r\n", "b.txt": "two\r\n\r\n"})])
    assert first.digest == again.digest == windows.digest
    changed = read_corpus("x", [write(tmp_path / "here", {"b.txt": "three"})])
    assert changed.digest != first.digest
    assert changed.documents[0].digest == first.documents[0].digest


def test_order_and_repetition_of_the_paths_make_no_difference(tmp_path: Path) -> None:
    one, two = write(tmp_path / "one", {"a.txt": "1"}), write(tmp_path / "two", {"b.txt": "2"})
    wanted = read_corpus("x", [one, two])
    repeated = read_corpus("x", [two, one / "a.txt", one, two])
    assert repeated.digest == wanted.digest
    assert len(repeated.skipped) == 1


def test_a_digest_that_was_once_written_stays(tmp_path: Path) -> None:
    corpus = read_corpus("x", [write(tmp_path / "d", {"a.md": "# A\nönе line", "b.txt": "two"})])
    assert corpus.digest == "91c16ab1aefc869ea8a379979a5c43d02200561038635c8e38d40bb810a8cc9b"


def test_a_file_can_be_named_itself_even_through_a_link(tmp_path: Path) -> None:
    root = write(tmp_path / "d", {"a.txt": "text"})
    (tmp_path / "link.txt").symlink_to(root / "a.txt")
    assert [d.uri for d in read_corpus("x", [root / "a.txt"]).documents] == ["a.txt"]
    assert [d.text for d in read_corpus("x", [tmp_path / "link.txt"]).documents] == ["text"]


def test_a_name_that_is_no_utf8_can_still_be_saved(tmp_path: Path) -> None:
    root = write(tmp_path / "d", {"good.txt": "text"})
    (root / os.fsdecode(b"caf\xe9.txt")).write_text("text")
    corpus = read_corpus("x", [root])
    corpus.save(tmp_path / "saved")
    assert "d/caf\\xe9.txt" in [document.uri for document in Corpus.load(tmp_path / "saved").documents]


def test_nothing_readable_is_an_error_that_counts_why(tmp_path: Path) -> None:
    root = write(tmp_path / "d", {"a.pdf": b"1", "b.pdf": b"2", "c.txt": ""})
    with pytest.raises(CorpusError, match=r"'x'.*2 unsupported file type \.pdf, 1 empty.*\.md"):
        read_corpus("x", [root])
    empty = tmp_path / "nothing"
    empty.mkdir()
    with pytest.raises(CorpusError, match="no files"):
        read_corpus("x", [empty])
    with pytest.raises(CorpusError, match=r"missing.*No such file"):
        read_corpus("x", [tmp_path / "missing"])
