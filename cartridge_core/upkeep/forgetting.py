"""The right to erasure: a corpus or one of its documents goes, with everything that was made of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cartridge_core.catalog import (
    Action,
    CatalogEntry,
    Status,
    catalog_session,
    clear_alias,
    list_cartridges,
    record_event,
    retire,
)
from cartridge_core.catalog.cartridges import cartridge_row
from cartridge_core.catalog.statuses import aliases_at, hold
from cartridge_core.corpus import Corpus, Document
from cartridge_core.digest import canonical_json
from cartridge_core.errors import CorpusError, NotFoundError, RegistryError
from cartridge_core.progress import Progress, no_progress
from cartridge_core.publishing import project_alias
from cartridge_core.publishing.artifact import MANIFEST_FILE, cartridge_key, report_key
from cartridge_core.report import REPORT_FILE
from cartridge_core.settings import Settings
from cartridge_core.stages.erase import erase
from cartridge_core.stages.ingest import IngestedCorpus, corpora, keep, store_of, withdraw_content
from cartridge_core.stages.local_copies import LocalCopies
from cartridge_core.stages.store import RECIPES, Finished
from cartridge_core.storage import delete_folder, open_store

_SHORTEST_DIGEST = 6


@dataclass(frozen=True)
class Dependents:
    """What was made of a corpus or a document."""

    corpus: str
    """Name of the corpus."""
    documents: tuple[Document, ...]
    """What is to be forgotten; empty where the whole corpus is."""
    versions: tuple[IngestedCorpus, ...]
    """Versions of the corpus that hold it, the oldest first."""
    work: tuple[Finished, ...]
    """Conversations, Cartridges, questions, gradings in the digest store that were made of them, also indirectly."""
    cartridges: tuple[CatalogEntry, ...]
    """Registered Cartridges that were trained on them."""
    elsewhere: tuple[str, ...]
    """Other corpora that hold the same: they are not touched."""
    unfinished: int
    """Folders of unfinished work, of which nobody can tell what they hold."""

    @property
    def datasets(self) -> tuple[str, ...]:
        """Digests of the conversation datasets."""
        return tuple(str(product.facts["digest"]) for product in self.work if product.stage == "study")

    def as_json(self) -> dict[str, Any]:
        """What there is, as JSON values."""
        return {
            "corpus": self.corpus,
            "documents": [{"uri": document.uri, "digest": document.digest} for document in self.documents],
            "versions": [version.digest for version in self.versions],
            "datasets": list(self.datasets),
            "work": [{"stage": product.stage, "key": product.key} for product in self.work],
            "cartridges": [
                {
                    "corpus": entry.corpus,
                    "digest": entry.digest,
                    "version": entry.version,
                    "status": entry.status.value,
                    "aliases": list(entry.aliases),
                }
                for entry in self.cartridges
            ],
            "elsewhere": list(self.elsewhere),
            "unfinished": self.unfinished,
        }


def dependents(settings: Settings, name: str, document: str | None = None) -> Dependents:
    """Everything that was made of a corpus, or of one of its documents; nothing is touched.

    Args:
        settings: Names the stores and the tenant.
        name: The corpus.
        document: Where the document was found (its uri), or the first six or more characters of its digest; None for
            the whole corpus.

    Raises:
        NotFoundError: There is no such corpus or document.
    """
    everything = corpora(settings)
    named = [corpus for corpus in everything if corpus.name == name]
    registered = _registered(settings, name)
    if not named and not registered:
        raise NotFoundError(f"There is no corpus {name!r}.", "`cartridge corpus list` shows those there are.")
    if document is None:
        versions, documents = named, list[Document]()
        contents = {version.digest for version in named} | {entry.corpus_digest for entry in registered}
        elsewhere = [corpus for corpus in everything if corpus.name != name and corpus.digest in contents]
        # What another corpus of the same content is made of stays with that one.
        contents -= {corpus.digest for corpus in elsewhere}
    else:
        versions, documents = _holding(named, document)
        if not documents:
            raise NotFoundError(
                f"Corpus {name!r} holds no document {document!r}.",
                "Give its path as the corpus has it, or six or more characters of its digest.",
            )
        contents = {version.digest for version in versions}
        digests = {one.digest for one in documents}
        elsewhere = [
            corpus
            for corpus in everything
            if corpus.name != name and digests & {one.digest for one in corpus.load().documents}
        ]
    work = _made_of(settings, contents)
    trained = {str(product.facts["digest"]) for product in work if product.stage == "fit"}
    return Dependents(
        corpus=name,
        documents=tuple(documents),
        versions=tuple(versions),
        work=tuple(work),
        cartridges=tuple(
            entry
            for entry in _registered(settings)
            if (entry.corpus == name and (document is None or entry.corpus_digest in contents))
            or (entry.digest in trained)
            or (document is not None and entry.corpus_digest in contents)
        ),
        elsewhere=tuple(sorted({corpus.name for corpus in elsewhere})),
        unfinished=len(store_of(settings).unfinished()),
    )


def withdraw(settings: Settings, found: Dependents, actor: str = "") -> list[CatalogEntry]:
    """Withdraw the corpus versions and retire every dependent Cartridge: nothing is made of them, served or promoted.

    The data stay. Aliases go.

    Returns:
        The Cartridges that were retired.

    Raises:
        CatalogError: The catalog refuses.
    """
    reason = _reason(found)
    for version in found.versions:
        withdraw_content(version, reason, found.documents)
    done = []
    for entry in found.cartridges:
        if entry.status in (Status.RETIRED, Status.DELETED):
            continue
        with catalog_session(settings) as session:
            row = cartridge_row(session, settings.tenant, entry.cartridge_id)
            hold(session, row)
            aliases = aliases_at(session, row)
            for alias in aliases:
                clear_alias(session, settings.tenant, entry.corpus, alias, reason=reason, actor=actor)
            retire(session, row, reason=reason, actor=actor)
        for alias in aliases:
            _project(settings, entry.corpus, alias)
        done.append(entry)
    return done


def forget(
    settings: Settings, found: Dependents, progress: Progress = no_progress, actor: str = ""
) -> IngestedCorpus | None:
    """Erase the corpus or document, and everything that was made of it, from all stores. Tombstones stay.

    What is registered goes first, the documents last: after an interruption, asking again finds what is left.

    Returns:
        The version of the corpus without the documents that counts from now on; None where the whole corpus went.

    Raises:
        CorpusError: The document is all that its corpus holds, or work goes on that may hold it.
        StorageError, RegistryError, CatalogError: A store refuses; forgetting again goes on.
    """
    store = store_of(settings)
    newest = [corpus for corpus in corpora(settings) if corpus.name == found.corpus][-1] if found.documents else None
    # Documents that only older versions hold do not change what counts.
    held = newest is not None and newest.digest in {version.digest for version in found.versions}
    rest = _without(newest.load(), found.documents) if newest is not None and held else None
    # Of unfinished work nobody can tell what it holds, and it can be done again.
    if busy := [folder for folder in store.unfinished() if not store.discard(folder)]:
        raise CorpusError(
            f"Work goes on that may hold what is to be forgotten: {busy[0].parent.name}/{busy[0].name[:12]}.",
            "Wait until it ends, or stop it.",
        )
    kept = newest if rest is None or newest is None else _kept(settings, newest, rest)
    for number, entry in enumerate(found.cartridges):
        progress(number, len(found.cartridges), "erasing Cartridges")
        erase(settings, entry.corpus, entry.digest, True, _reason(found), actor)
    progress(len(found.cartridges), len(found.cartridges), "erasing Cartridges")
    files = open_store(settings.artifact_root)
    for product in found.work:
        # Also what never came to be registered: nothing lists it, and its upload may have been interrupted.
        if product.stage == "grade":
            delete_folder(files, report_key(settings.tenant, str(product.facts["digest"])), REPORT_FILE)
        if product.stage == "fit":
            delete_folder(files, cartridge_key(settings.tenant, str(product.facts["digest"])), MANIFEST_FILE)
            LocalCopies(settings).discard(str(product.facts["digest"]))
        store.forget(product)
    with catalog_session(settings) as session:
        record_event(
            session,
            settings.tenant,
            Action.FORGET,
            found.corpus,
            actor=actor,
            # Digests only: where a document lay may itself name somebody.
            details={
                "documents": [document.digest for document in found.documents],
                "versions": [version.digest for version in found.versions],
                "datasets": list(found.datasets),
                "cartridges": [entry.digest for entry in found.cartridges],
            },
        )
    for version in found.versions:
        store.forget(version.product)
    return kept


def _registered(settings: Settings, name: str | None = None) -> list[CatalogEntry]:
    with catalog_session(settings, read_only=True) as session:
        try:
            return list_cartridges(session, settings.tenant, name, include_deleted=True)
        except NotFoundError:
            return []


def _holding(named: Sequence[IngestedCorpus], document: str) -> tuple[list[IngestedCorpus], list[Document]]:
    loaded = [(version, version.load().documents) for version in named]
    prefix = document if len(document) >= _SHORTEST_DIGEST else None
    digests = {
        one.digest
        for _, documents in loaded
        for one in documents
        if one.uri == document or (prefix is not None and one.digest.startswith(prefix))
    }
    versions = [version for version, documents in loaded if digests & {one.digest for one in documents}]
    found = {one.digest: one for _, documents in loaded for one in documents if one.digest in digests}
    return versions, list(found.values())


def _made_of(settings: Settings, contents: set[str]) -> list[Finished]:
    """Finished work whose inputs or ancestry name one of these digests, or that of other work that does.

    Other tenants' work is theirs, also where it is about a text that both have.
    """
    store, ours = store_of(settings), settings.tenant
    open_ = [p for stage in RECIPES if stage != "ingest" for p in store.finished(stage)]
    open_ = [product for product in open_ if product.inputs.get("tenant", ours) == ours]
    named = {p.key: canonical_json([p.inputs, p.facts.get("ancestry", [])]) for p in open_}
    digests, made = set(contents), list[Finished]()
    while True:
        new = [product for product in open_ if any(digest in named[product.key] for digest in digests)]
        if not new:
            return made
        made += new
        open_ = [product for product in open_ if product not in new]
        digests = {str(product.facts["digest"]) for product in new if "digest" in product.facts}


def _kept(settings: Settings, before: IngestedCorpus, rest: Corpus) -> IngestedCorpus:
    kept = keep(settings, rest)
    # Of documents that were withdrawn with those, and are not erased yet, still nothing is made.
    others = [one for one in rest.documents if one.digest in before.reading.documents]
    if before.reading.withdrawn and others:
        withdraw_content(kept, before.reading.withdrawn, others)
    return kept


def _without(corpus: Corpus, documents: Sequence[Document]) -> Corpus:
    gone = {document.digest for document in documents}
    left = tuple(document for document in corpus.documents if document.digest not in gone)
    if not left:
        raise CorpusError(
            f"Corpus {corpus.name!r} holds nothing else.", f"Remove it: `cartridge corpus remove {corpus.name}`."
        )
    return Corpus(corpus.name, left, corpus.skipped)


def _reason(found: Dependents) -> str:
    if not found.documents:
        return "The corpus was removed."
    return f"Document {', '.join(document.digest[:12] for document in found.documents)} was to be forgotten."


def _project(settings: Settings, corpus: str, alias: str) -> None:
    try:
        project_alias(settings, corpus, alias)
    except RegistryError:  # what is served does not depend on it; `cartridge doctor` repeats it
        return
