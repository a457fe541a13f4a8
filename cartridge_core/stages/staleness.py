"""Whether what is served of a corpus still stands in for its documents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from cartridge_core.catalog import CHAMPION, CatalogEntry, Status, catalog_session, list_cartridges
from cartridge_core.progress import Progress, no_progress
from cartridge_core.settings import Settings
from cartridge_core.stages.ingest import IngestedCorpus, corpora, find_corpus, ingest


class Standing(StrEnum):
    """How a corpus's champion stands to its documents."""

    WITHOUT_CHAMPION = "without_champion"
    """Nothing of the corpus is served: nobody has asked for that, or it was withdrawn."""
    UNREADABLE = "unreadable"
    """The documents are not where they were read, or nobody knows where that was."""
    FRESH = "fresh"
    """The champion stands in for the present content."""
    STALE = "stale"
    """No Cartridge was ever registered for the present content."""
    WAITING = "waiting_for_promotion"
    """Another Cartridge stands in for it: the gate refused that one, or it was champion before."""
    WITHDRAWN = "withdrawn"
    """All Cartridges that stood in for it were retired or erased."""


@dataclass(frozen=True)
class Watched:
    """A corpus, looked at."""

    name: str
    """Name of the corpus."""
    digest: str
    """Its present content."""
    sources: tuple[Path, ...]
    """Where that is read from."""
    standing: Standing
    """How its champion stands to that."""
    champion: CatalogEntry | None
    """What is served; None where nothing is."""


def corpus_names(settings: Settings) -> list[str]:
    """Names of the tenant's corpora, in order."""
    return sorted({corpus.name for corpus in corpora(settings)})


def look_again(settings: Settings, name: str, progress: Progress = no_progress) -> Watched:
    """Read the documents of a corpus again, if it has a champion, and compare.

    Documents of a corpus of which nothing is served are not read: they may have been withdrawn for good.

    Args:
        settings: Store, catalog, tenant.
        name: The corpus.
        progress: Told about documents.

    Raises:
        NotFoundError: There is no such corpus.
        CorpusError: Nothing readable is left of it, or a document that was withdrawn is there again.
    """
    named = [corpus for corpus in corpora(settings) if corpus.name == name]
    with catalog_session(settings) as session:
        entries = list_cartridges(session, settings.tenant, name, include_deleted=True)
    champion = next((entry for entry in entries if CHAMPION in entry.aliases), None)
    if champion is None:
        # Its versions may all be withdrawn; nothing is made of them here.
        return _watched(named[-1] if named else find_corpus(settings, name), Standing.WITHOUT_CHAMPION, None)
    newest = find_corpus(settings, name)
    if not newest.sources or not all(source.exists() for source in newest.sources):
        return _watched(newest, Standing.UNREADABLE, champion)
    present = ingest(settings, name, newest.sources, progress, readmit=False)
    return _watched(present, standing(present.digest, champion, entries), champion)


def standing(digest: str, champion: CatalogEntry, entries: Sequence[CatalogEntry]) -> Standing:
    """How a champion stands to the present content of its corpus.

    A Cartridge of that content that is not served is left to people: to train it again would end the same, and to
    promote it might undo somebody's rollback, which looks the same as content that went back to what it was.

    Args:
        digest: Of the present content.
        champion: What is served.
        entries: All Cartridges of the corpus, deleted ones too.
    """
    if champion.corpus_digest == digest:
        return Standing.FRESH
    same = [entry for entry in entries if entry.corpus_digest == digest]
    if not same:
        return Standing.STALE
    gone = all(entry.status in (Status.RETIRED, Status.DELETED) for entry in same)
    return Standing.WITHDRAWN if gone else Standing.WAITING


def _watched(corpus: IngestedCorpus, standing: Standing, champion: CatalogEntry | None) -> Watched:
    return Watched(corpus.name, corpus.digest, corpus.sources, standing, champion)
