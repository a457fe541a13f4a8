"""Stage 1: documents become a corpus version."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cartridge_core.catalog import catalog_session, record_corpus
from cartridge_core.corpus import Corpus, read_corpus
from cartridge_core.digest import digest_of
from cartridge_core.errors import NotFoundError
from cartridge_core.progress import Progress, no_progress
from cartridge_core.settings import Settings, valid_name
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

    @property
    def sources(self) -> tuple[Path, ...]:
        """Where it was first read from."""
        return tuple(Path(source) for source in self.product.facts.get("sources", ()))

    def load(self) -> Corpus:
        """The documents."""
        return Corpus.load(self.product.directory)


def ingest(
    settings: Settings, name: str, paths: Sequence[Path | str], progress: Progress = no_progress
) -> IngestedCorpus:
    """Read text and Markdown files and folders into a corpus version that the catalog knows.

    The same content is the same version.

    Args:
        settings: Where store and catalog are, and whose corpus it is.
        name: What the corpus is called.
        paths: Files and folders, in the order in which they are to be read.
        progress: Told about the documents.

    Raises:
        CorpusError: Nothing readable was found.
        SettingsError: The name does not match `[a-z0-9-]{1,63}`.
    """
    valid_name(name, "corpus")
    ingested = keep(settings, read_corpus(name, [Path(path) for path in paths]), paths)
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
    name = corpus.name
    # The skipped files belong to the key, not to the digest: the report about them must be that of this reading.
    skipped = [{"uri": skip.uri, "reason": skip.reason} for skip in corpus.skipped]
    inputs = {"tenant": settings.tenant, "name": name, "digest": corpus.digest, "skipped": digest_of(skipped)}

    def work(directory: Path) -> Facts:
        corpus.save(directory)
        return describe(corpus) | {"sources": [str(Path(path).absolute()) for path in paths]}

    product = store_of(settings).run("ingest", inputs, work)
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
    """All corpus versions of the tenant, oldest first."""
    products = store_of(settings).finished("ingest")
    return [IngestedCorpus(product) for product in products if product.inputs["tenant"] == settings.tenant]


def find_corpus(settings: Settings, name: str, version: str = "") -> IngestedCorpus:
    """The newest version of a corpus, or the one whose digest begins with `version`.

    Raises:
        NotFoundError: There is none.
    """
    named = [corpus for corpus in corpora(settings) if corpus.name == name]
    if not named:
        raise NotFoundError(f"There is no corpus '{name}'.", f"Add it with: cartridge corpus add {name} PATH...")
    matching = [corpus for corpus in named if corpus.digest.startswith(version)]
    if not matching:
        known = ", ".join(sorted({corpus.digest[:12] for corpus in named}))
        raise NotFoundError(f"Corpus '{name}' has no version {version}.", f"Its versions are {known}.")
    return matching[-1]


def store_of(settings: Settings) -> StageStore:
    """The digest store of these settings."""
    return StageStore(settings.home / "stages")
