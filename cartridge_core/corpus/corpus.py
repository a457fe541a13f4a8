"""The corpus: ordered documents, addressed by the digest of what they say."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from cartridge_core.atomic_file import atomic_file
from cartridge_core.corpus.document import Document, Skipped, document_text
from cartridge_core.digest import canonical_json, digest_of
from cartridge_core.errors import ArtifactError

MANIFEST_FILE = "corpus.json"
DOCUMENTS_FILE = "documents.jsonl"
FORMAT_VERSION = 1

_REMEDY = "Add the corpus again from its source files."


@dataclass(frozen=True)
class Corpus:
    """Documents under a name, with a note of every file that was found and not read."""

    name: str
    """What users call it; no part of its identity."""
    documents: tuple[Document, ...]
    """In the order in which a model reads them."""
    skipped: tuple[Skipped, ...] = ()
    """Files that were found and not read; no part of its identity."""

    @cached_property
    def digest(self) -> str:
        """sha256 over the ordered document digests: the same content is the same corpus version."""
        return digest_of([document.digest for document in self.documents])

    @classmethod
    def joined(cls, corpora: Sequence["Corpus"]) -> "Corpus":
        """Several corpora as one: their documents one behind the other, under their names with a plus between them."""
        return cls(
            "+".join(corpus.name for corpus in corpora),
            tuple(document for corpus in corpora for document in corpus.documents),
            tuple(skipped for corpus in corpora for skipped in corpus.skipped),
        )

    def text(self) -> str:
        """All documents as a model sees them: what a Cartridge stands in for."""
        return "\n\n".join(document_text(document) for document in self.documents)

    def skipped_by_reason(self) -> dict[str, int]:
        """How many files were skipped for which reason."""
        return dict(Counter(skipped.reason for skipped in self.skipped))

    def save(self, folder: Path) -> None:
        """Write the corpus into a folder: the documents, then the manifest that a reader trusts.

        Args:
            folder: Created where it does not exist; a corpus already in it is replaced.
        """
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MANIFEST_FILE).unlink(missing_ok=True)
        with atomic_file(folder / DOCUMENTS_FILE) as stream:
            for document in self.documents:
                stream.write(canonical_json(document.to_record()).encode() + b"\n")
        manifest = {
            "format_version": FORMAT_VERSION,
            "name": self.name,
            "digest": self.digest,
            "num_documents": len(self.documents),
            "skipped": [asdict(skipped) for skipped in self.skipped],
        }
        with atomic_file(folder / MANIFEST_FILE) as stream:
            stream.write(json.dumps(manifest, indent=2, ensure_ascii=False).encode() + b"\n")

    @classmethod
    def load(cls, folder: Path) -> "Corpus":
        """Read a corpus that `save` wrote, and check it against its digest.

        Raises:
            ArtifactError: A file is missing, unreadable, of another format version, or does not match the digest.
        """
        manifest = _read_json(folder / MANIFEST_FILE)
        if (version := manifest.get("format_version")) != FORMAT_VERSION:
            raise ArtifactError(
                f"{folder / MANIFEST_FILE} has format version {version!r}; this software reads {FORMAT_VERSION}.",
                _REMEDY,
            )
        path = folder / DOCUMENTS_FILE
        try:
            records = [json.loads(line) for line in path.read_bytes().split(b"\n") if line]
            documents = tuple(Document(**record) for record in records)
            corpus = cls(manifest["name"], documents, tuple(Skipped(**entry) for entry in manifest["skipped"]))
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ArtifactError(f"The corpus in {folder} cannot be read: {error}.", _REMEDY) from error
        if corpus.digest != manifest.get("digest"):
            raise ArtifactError(
                f"{path} has digest {corpus.digest[:12]}, its manifest says {str(manifest.get('digest'))[:12]}.",
                _REMEDY,
            )
        return corpus


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path.parent} holds no complete corpus: {error}.", _REMEDY) from error
    if not isinstance(content, dict):
        raise ArtifactError(f"{path} holds {type(content).__name__}, not an object.", _REMEDY)
    return content
