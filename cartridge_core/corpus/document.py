"""A document, and the note that is kept of a file that did not become one."""

from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from cartridge_core.digest import digest_of


@dataclass(frozen=True)
class Document:
    """One text of a corpus."""

    uri: str
    """Where it was found: folder name and path below it, in POSIX form."""
    title: str
    """What the reader of a chunk is told about where the chunk comes from."""
    media_type: str
    """MIME type of the source."""
    text: str
    """The text, with `\\n` line ends and without the title."""
    metadata: dict[str, str] = field(default_factory=dict)
    """What else the source says about the document; part of its identity."""

    @cached_property
    def digest(self) -> str:
        """sha256 of what the document says. Where it lay is left out: moving a file makes no new document."""
        return digest_of({key: value for key, value in self.to_record().items() if key != "uri"})

    def to_record(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Skipped:
    """A file or folder that was found and not read."""

    uri: str
    """Where it was found."""
    reason: str
    """Why it was not read; the same words for the same cause, so that reasons can be counted."""


def document_text(document: Document) -> str:
    """The document as a model sees it."""
    return f"{document_header(document)}\n{document.text}"


def document_header(document: Document) -> str:
    """The line that tells a model where a text comes from."""
    return f"From: {document.title}"
