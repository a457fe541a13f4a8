"""Stage 1: documents become a corpus version."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from cartridge_core.catalog import catalog_session, record_corpus
from cartridge_core.corpus import Corpus, Document, read_corpus
from cartridge_core.digest import digest_of
from cartridge_core.errors import CorpusError, NotFoundError
from cartridge_core.progress import Progress, no_progress
from cartridge_core.settings import Settings, valid_name
from cartridge_core.stages.reading import Reading
from cartridge_core.stages.store import Facts, Finished, StageStore


@dataclass(frozen=True)
class IngestedCorpus:
    """A corpus version in the digest store."""

    product: Finished
    """Where it lies and how it was made."""

    @property
    def name(self) -> str:
        """The corpus's name."""
        return str(self.product.facts["name"])

    @property
    def digest(self) -> str:
        """Digest of the documents: the version."""
        return str(self.product.facts["digest"])

    @cached_property
    def reading(self) -> Reading:
        """When and from where it was last read, as far as was known when this was asked first."""
        return Reading.of(self.product)

    @property
    def sources(self) -> tuple[Path, ...]:
        """Where it was last read from."""
        return tuple(Path(source) for source in self.reading.sources)

    def load(self) -> Corpus:
        """The documents."""
        return Corpus.load(self.product.directory)


def ingest(
    settings: Settings,
    name: str,
    paths: Sequence[Path | str],
    progress: Progress = no_progress,
    *,
    readmit: bool = True,
) -> IngestedCorpus:
    """Read text and Markdown files and folders into a corpus version that the catalog knows.

    The same content is the same version, and the newest one again.

    Args:
        settings: Where store and catalog are, and whose corpus it is.
        name: What the corpus is called.
        paths: Files and folders, in the order in which they are to be read.
        progress: Told about the documents.
        readmit: Whether documents that were withdrawn may come back: a person may say so, a schedule may not.

    Raises:
        CorpusError: Nothing readable was found, or something of it was withdrawn.
        SettingsError: The name does not match `[a-z0-9-]{1,63}`.
    """
    valid_name(name, "corpus")
    corpus = read_corpus(name, [Path(path) for path in paths])
    if not readmit:
        _check_withdrawn(settings, corpus)
    ingested = keep(settings, corpus, paths)
    total = int(ingested.product.facts["num_documents"])
    progress(total, total, "reading documents")
    return ingested


def keep(settings: Settings, corpus: Corpus, paths: Sequence[Path | str] = ()) -> IngestedCorpus:
    """Make documents that were read a corpus version that the catalog knows. The same content is the same version.

    Args:
        settings: Where store and catalog are, and whose corpus it is.
        corpus: The documents.
        paths: Where they can be read again; nowhere, for what is left after something was forgotten.
    """
    name, sources = corpus.name, tuple(str(Path(path).absolute()) for path in paths)
    # The skipped files belong to the key, not to the digest: the report about them must be that of this reading.
    skipped = [{"uri": skip.uri, "reason": skip.reason} for skip in corpus.skipped]
    inputs = {"tenant": settings.tenant, "name": name, "digest": corpus.digest, "skipped": digest_of(skipped)}

    def work(directory: Path) -> Facts:
        corpus.save(directory)
        return describe(corpus) | {"sources": list(sources)}

    product = store_of(settings).run("ingest", inputs, work)
    Reading.now(sources).write(product.directory)
    with catalog_session(settings) as session:
        record_corpus(
            session,
            settings.tenant,
            name,
            corpus.digest,
            num_documents=len(corpus.documents),
            num_skipped=len(skipped),
        )
    return IngestedCorpus(product)


def describe(corpus: Corpus) -> Facts:
    """What there is to say about a corpus, as JSON values."""
    facts: dict[str, Any] = {
        "name": corpus.name,
        "digest": corpus.digest,
        "num_documents": len(corpus.documents),
        "num_characters": sum(len(document.text) for document in corpus.documents),
        "skipped": [{"uri": skip.uri, "reason": skip.reason} for skip in corpus.skipped],
    }
    return facts


def corpora(settings: Settings) -> list[IngestedCorpus]:
    """All corpus versions of the tenant, the one read last at the end."""
    products = store_of(settings).finished("ingest")
    found = [IngestedCorpus(product) for product in products if product.inputs["tenant"] == settings.tenant]
    return sorted(found, key=lambda corpus: corpus.reading.read_at)


def withdraw_content(corpus: IngestedCorpus, reason: str, documents: Sequence[Document] = ()) -> None:
    """Let nothing more be made of a corpus version, nor put it in a prompt, until somebody adds it again.

    Args:
        corpus: The version.
        reason: A sentence that says why.
        documents: Those that it is for; all of them where none is named.
    """
    named = tuple(word for one in documents or corpus.load().documents for word in (one.digest, one.uri))
    replace(Reading.of(corpus.product), withdrawn=reason, documents=named).write(corpus.product.directory)


def _check_withdrawn(settings: Settings, corpus: Corpus) -> None:
    versions = [version for version in corpora(settings) if version.name == corpus.name]
    gone = {word for version in versions for word in version.reading.documents}
    # What stands in the version that counts was let in again by a person.
    standing = [version for version in versions if not version.reading.withdrawn][-1:] if gone else []
    gone -= {word for version in standing for one in version.load().documents for word in (one.digest, one.uri)}
    if back := [one.uri for one in corpus.documents if {one.digest, one.uri} & gone]:
        raise CorpusError(
            f"Corpus {corpus.name!r} holds what was withdrawn from it: {', '.join(back[:3])}.",
            f"Remove it from the documents, or let it in again: cartridge corpus add {corpus.name} PATH...",
        )


def find_corpus(settings: Settings, name: str, version: str = "") -> IngestedCorpus:
    """The version of a corpus that was read last, or the one whose digest begins with `version`.

    Raises:
        NotFoundError: There is none that was not withdrawn.
    """
    named = [corpus for corpus in corpora(settings) if corpus.name == name]
    if not named:
        raise NotFoundError(f"There is no corpus '{name}'.", f"Add it with: cartridge corpus add {name} PATH...")
    matching = [corpus for corpus in named if corpus.digest.startswith(version)]
    if not matching:
        known = ", ".join(sorted({corpus.digest[:12] for corpus in named}))
        raise NotFoundError(f"Corpus '{name}' has no version {version}.", f"Its versions are {known}.")
    standing = [corpus for corpus in matching if not corpus.reading.withdrawn]
    if not standing:
        raise NotFoundError(
            f"Corpus '{name}'{f', version {version},' if version else ''} was withdrawn: "
            f"{matching[-1].reading.withdrawn}",
            f"Erase it with `cartridge corpus remove {name} --yes --erase`, or add it again.",
        )
    return standing[-1]


def store_of(settings: Settings) -> StageStore:
    """The digest store of these settings."""
    return StageStore(settings.home / "stages")
