"""Which corpora have content that no Cartridge stands in for yet, although an earlier one stood in for the old."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cartridge_core.catalog import CHAMPION, catalog_session, list_cartridges
from cartridge_core.progress import Progress, no_progress
from cartridge_core.settings import Settings
from cartridge_core.stages.ingest import IngestedCorpus, corpora, find_corpus, ingest


@dataclass(frozen=True)
class StaleCorpus:
    """A corpus that has moved on from its last Cartridge."""

    name: str
    """Name of the corpus."""
    digest: str
    """Its present content."""
    sources: tuple[Path, ...]
    """Where that was read from."""
    cartridge: str
    """Digest of the last Cartridge: the champion, or the newest where there is none."""
    num_tokens: int
    """That one's length."""


def read_again(settings: Settings, names: Sequence[str] = (), progress: Progress = no_progress) -> list[IngestedCorpus]:
    """The newest version of corpora, after their documents were read again where those still are.

    Args:
        settings: Store, catalog, tenant.
        names: Which corpora; all where nobody says.
        progress: Told about documents.

    Raises:
        NotFoundError: There is no corpus of a name.
    """
    newest = [find_corpus(settings, name) for name in names or sorted({corpus.name for corpus in corpora(settings)})]
    return [
        ingest(settings, corpus.name, corpus.sources, progress)
        if corpus.sources and all(source.exists() for source in corpus.sources)
        else corpus
        for corpus in newest
    ]


def stale_corpora(settings: Settings, newest: Sequence[IngestedCorpus]) -> list[StaleCorpus]:
    """Those of which a Cartridge is registered, but none of the present content, and whose documents can be read.

    A corpus without any Cartridge is not stale: nobody has asked for one. One whose new Cartridge the gate refused is
    not either: training it again would end the same.
    """
    stale = []
    for corpus in newest:
        with catalog_session(settings) as session:
            entries = list_cartridges(session, settings.tenant, corpus.name)
        if not entries or not corpus.sources or any(entry.corpus_digest == corpus.digest for entry in entries):
            continue
        last = next((e for e in entries if CHAMPION in e.aliases), entries[0])
        stale.append(StaleCorpus(corpus.name, corpus.digest, corpus.sources, last.digest, last.num_tokens))
    return stale
