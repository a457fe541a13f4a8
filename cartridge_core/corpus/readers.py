"""Reads files into documents. A reader is one function; adding a format is one entry in `READERS`."""

import codecs
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from cartridge_core.corpus.corpus import Corpus
from cartridge_core.corpus.document import Document, Skipped
from cartridge_core.corpus.source_files import UNREADABLE, SourceFile, find_source_files, read_source_file
from cartridge_core.errors import CorpusError

EMPTY = "empty"
BINARY = "binary"
NOT_UTF8 = "not UTF-8"
ALREADY_READ = "the same file was already read"

_WIDE_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)
_HEADING = re.compile(r" {0,3}#{1,6}[ \t]+(?P<title>.*?)(?:[ \t]+#+)?[ \t]*$")
_UNDERLINE = re.compile(r" {0,3}=+[ \t]*$")
_FENCE = re.compile(r" {0,3}(```|~~~)")


@dataclass(frozen=True)
class Parsed:
    """What a reader makes of a file's text."""

    title: str | None
    """Title found in the text, or None to name the document after its file."""
    text: str
    """The text without the title."""


def read_plain(text: str) -> Parsed:
    """Plain text is taken as it is."""
    return Parsed(None, text)


def read_markdown(text: str) -> Parsed:
    """Markdown keeps its marks; its first heading becomes the title and leaves the text."""
    lines = text.split("\n")
    fenced = False
    for index, line in enumerate(lines):
        if _FENCE.match(line):
            fenced = not fenced
        if fenced:  # a comment in a code block is no heading
            continue
        if (found := _HEADING.match(line)) and found["title"].strip():
            return Parsed(found["title"].strip(), "\n".join(lines[:index] + lines[index + 1 :]))
        if index and _UNDERLINE.match(line) and lines[index - 1].strip():
            return Parsed(lines[index - 1].strip(), "\n".join(lines[: index - 1] + lines[index + 1 :]))
    return Parsed(None, text)


READERS: dict[str, tuple[str, Callable[[str], Parsed]]] = {
    ".txt": ("text/plain", read_plain),
    ".md": ("text/markdown", read_markdown),
    ".markdown": ("text/markdown", read_markdown),
}
"""File ending to media type and reader."""


def read_corpus(name: str, paths: Iterable[Path]) -> Corpus:
    """Read every supported file at or below the paths, in the order of their names.

    Args:
        name: Name of the corpus.
        paths: Files and folders. Their order, and naming one twice, makes no difference.

    Returns:
        The corpus; a file that could not be read is in `Corpus.skipped` with the reason.

    Raises:
        CorpusError: A path does not exist, or nothing in them is readable.
    """
    named = [Path(path) for path in paths]
    documents: list[Document] = []
    skipped: list[Skipped] = []
    seen: set[Path] = set()
    for root in sorted(set(named)):
        for found in find_source_files(root):
            if isinstance(found, Skipped):
                skipped.append(found)
                continue
            result = Skipped(found.uri, ALREADY_READ) if found.path in seen else read_document(found)
            seen.add(found.path)
            if isinstance(result, Document):
                documents.append(result)
            else:
                skipped.append(result)
    # Sorted by place so that the order in which a file system or a user lists them does not make another corpus.
    corpus = Corpus(
        name,
        tuple(sorted(documents, key=lambda document: (document.uri, document.digest))),
        tuple(sorted(skipped, key=lambda entry: (entry.uri, entry.reason))),
    )
    if not documents:
        reasons = ", ".join(f"{count} {reason}" for reason, count in corpus.skipped_by_reason().items()) or "no files"
        where = ", ".join(map(str, named)) or "no path"
        raise CorpusError(
            f"Nothing readable for corpus {name!r} in {where}: {reasons}.",
            f"Give UTF-8 files that end in {', '.join(READERS)}.",
        )
    return corpus


def read_document(source: SourceFile) -> Document | Skipped:
    """Read one file, or say why it cannot be a document."""
    place = PurePosixPath(source.uri)
    if place.suffix.lower() not in READERS:
        return Skipped(source.uri, f"unsupported file type {place.suffix.lower() or '(none)'}")
    try:
        data = read_source_file(source)
    except OSError:
        return Skipped(source.uri, UNREADABLE)
    if data.startswith(_WIDE_MARKS):  # before the search for NUL: UTF-16 is text, though not ours
        return Skipped(source.uri, NOT_UTF8)
    if b"\0" in data:
        return Skipped(source.uri, BINARY)
    try:
        content = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return Skipped(source.uri, NOT_UTF8)
    media_type, reader = READERS[place.suffix.lower()]
    parsed = reader(content.replace("\r\n", "\n").replace("\r", "\n"))
    text = parsed.text.strip("\n")
    if not text.strip():
        return Skipped(source.uri, EMPTY)
    title = parsed.title or " ".join(re.sub(r"[-_]+", " ", place.stem).split()) or place.stem
    return Document(source.uri, title, media_type, text)
