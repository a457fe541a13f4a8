"""From a name to the Cartridge that the catalog's alias points at: the truth about what is served."""

import threading
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from cartridge_core.catalog import (
    CHAMPION,
    Catalog,
    CatalogEntry,
    CompositionEntry,
    Status,
    find_composition,
    find_version,
    list_corpora,
    list_served,
    resolve,
)
from cartridge_core.catalog.corpora import corpus_named
from cartridge_core.errors import NotFoundError
from cartridge_core.manifest import BaseModelIdentity
from cartridge_core.registry import model_name
from cartridge_core.serving.errors import GoneError, NotPromotedError, WrongBaseModelError
from cartridge_core.serving.model_name import CorpusReference, unknown_model
from cartridge_core.serving.remembered import Freshness, Remembered
from cartridge_core.settings import Settings

MOST_CORPORA = 1000
"""Served corpora that a list of models shows, the first by name: OpenAI's list has no pages. All are found by name."""


@dataclass(frozen=True)
class ResolvedCartridge:
    """A Cartridge to be served, as it was when the catalog was asked."""

    tenant: str
    corpus: str
    version: int
    """MLflow version."""
    alias: str | None
    """The alias that led here; None where a version was named."""
    aliases: tuple[str, ...]
    """All aliases that point at it."""
    digest: str
    """The Cartridge's digest."""
    base_model: BaseModelIdentity
    num_tokens: int
    kv_bytes: int
    """Bytes of keys and values in the base model's stored type."""
    artifact_key: str
    """Folder of its files as a key of the artifact store."""
    corpus_digest: str
    created_at: str
    """When it was registered, ISO 8601."""
    benchmark: str | None = None
    num_questions: int | None = None
    score: float | None = None
    icl_score: float | None = None
    """Score with the corpus in context; None where it does not fit."""
    icl_tokens: int | None = None
    """Tokens of the corpus in context, as the evaluation counted them."""

    @property
    def saved_tokens(self) -> int | None:
        """Tokens that a request need not read; None where the corpus was never measured in context."""
        return None if self.icl_tokens is None else max(0, self.icl_tokens - self.num_tokens)

    @property
    def saved_bytes(self) -> int | None:
        """Bytes of keys and values that the corpus in context would take more."""
        saved = self.saved_tokens
        return None if saved is None else saved * self.kv_bytes // self.num_tokens

    def describe(self) -> dict[str, Any]:
        """What a caller may see, as JSON values."""
        return {
            "corpus": self.corpus,
            "version": self.version,
            "alias": self.alias,
            "digest": self.digest,
            "base_model": self.base_model.id,
            "cartridge_tokens": self.num_tokens,
            "kv_bytes": self.kv_bytes,
            "saved_tokens": self.saved_tokens,
            "saved_bytes": self.saved_bytes,
            "evaluation": None
            if self.benchmark is None
            else {
                "benchmark": self.benchmark,
                "num_questions": self.num_questions,
                "score": self.score,
                "icl_score": self.icl_score,
                "icl_tokens": self.icl_tokens,
            },
        }


@dataclass(frozen=True)
class ServedCorpus:
    """A corpus and what can be asked of it."""

    name: str
    created: int
    """Unix time at which its newest version was written."""
    cartridges: tuple[ResolvedCartridge, ...]
    """One an alias, the champion first; those of this gateway's base model only."""


class Catalogue:
    """The catalog, opened when it is first needed and kept open: a gateway may start before its database.

    Args:
        settings: Names the database.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._catalog: Catalog | None = None

    def open(self) -> Catalog:
        """The open catalog.

        Raises:
            CatalogError: It cannot be reached.
        """
        with self._lock:
            if self._catalog is None:
                self._catalog = Catalog(self._settings)
            return self._catalog

    def close(self) -> None:
        """Give all connections back."""
        with self._lock:
            if self._catalog is not None:
                self._catalog.close()


class Resolver:
    """Finds Cartridges by name for one base model.

    Args:
        catalogue: Where to look.
        base_model: The gateway's base model.
        freshness: How long an answer is good.
    """

    def __init__(self, catalogue: Catalogue, base_model: BaseModelIdentity, freshness: Freshness | None = None) -> None:
        self._catalogue, self._base_model = catalogue, base_model
        freshness = freshness or Freshness()
        self._found: Remembered[tuple[str, CorpusReference], CatalogEntry] = Remembered(self._find, freshness)
        self._composed: Remembered[tuple[str, tuple[str, ...]], CompositionEntry | None] = Remembered(
            self._find_composition, freshness
        )
        self._listed: Remembered[str, tuple[ServedCorpus, ...]] = Remembered(self._list, freshness)

    async def resolve(self, tenant: str, reference: CorpusReference, *, gone: bool = False) -> ResolvedCartridge:
        """The Cartridge that a tenant means.

        Args:
            tenant: Whose.
            reference: Its name.
            gone: Also one that was retired or erased, for who lets it go.

        Raises:
            UnknownModelError: There is no such corpus, alias or version.
            NotPromotedError: The corpus has no champion.
            GoneError: It was retired or erased.
            WrongBaseModelError: It belongs to another base model.
            CatalogDownError: The database does not answer, and nothing recent is remembered.
        """
        entry = await self._found.get((tenant, reference))
        if not gone:
            _refuse_gone(entry, reference)
        return self._checked(entry, reference)

    async def composition(self, tenant: str, digests: tuple[str, ...]) -> CompositionEntry | None:
        """The newest evaluation of Cartridges of a tenant in this order; None where there is none.

        Raises:
            CatalogDownError: As `resolve`.
        """
        return await self._composed.get((tenant, digests))

    async def corpora(self, tenant: str) -> tuple[ServedCorpus, ...]:
        """Served corpora of a tenant, by name: the first `MOST_CORPORA`.

        Raises:
            CatalogDownError: As `resolve`.
        """
        return await self._listed.get(tenant)

    def forget(self) -> None:
        """Ask anew next time."""
        self._found.forget()
        self._composed.forget()
        self._listed.forget()

    def close(self) -> None:
        """Stop asking."""
        self._found.close()
        self._composed.close()
        self._listed.close()

    def _find(self, key: tuple[str, CorpusReference]) -> CatalogEntry:
        tenant, reference = key
        with self._catalogue.open().session(read_only=True) as session:
            try:
                if reference.version is None:
                    return resolve(session, tenant, reference.corpus, reference.alias or CHAMPION)
                ours = model_name(tenant, reference.corpus, self._base_model.id)
                return find_version(session, tenant, reference.corpus, reference.version, ours)
            except NotFoundError:
                there = corpus_named(session, tenant, reference.corpus) is not None
                if there and reference.alias == CHAMPION:
                    raise NotPromotedError(
                        f"Nothing is served for the corpus {reference.corpus!r} yet.",
                        f"Promote a Cartridge: cartridge promote {reference.corpus}.",
                        param="model",
                    ) from None
                raise unknown_model(str(reference)) from None

    def _find_composition(self, key: tuple[str, tuple[str, ...]]) -> CompositionEntry | None:
        with self._catalogue.open().session(read_only=True) as session:
            return find_composition(session, *key)

    def _checked(self, entry: CatalogEntry, reference: CorpusReference) -> ResolvedCartridge:
        if entry.base_model != self._base_model:
            theirs, ours = entry.base_model, self._base_model
            same = (theirs.id, theirs.revision) == (ours.id, ours.revision)
            raise WrongBaseModelError(
                f"The Cartridge {str(reference)!r} belongs to {theirs.id} at revision {theirs.revision}; this gateway "
                f"serves {ours.id} at revision {ours.revision}{', with another configuration' if same else ''}.",
                "Ask the gateway of that model, or build a Cartridge for this one.",
                param="model",
            )
        resolved = resolved_of(entry, reference.alias)
        if resolved is None:
            raise unknown_model(str(reference))
        return resolved

    def _list(self, tenant: str) -> tuple[ServedCorpus, ...]:
        with self._catalogue.open().session(read_only=True) as session:
            corpora = list_corpora(session, tenant, limit=MOST_CORPORA, served=True)
            entries = list_served(session, tenant, [corpus.name for corpus in corpora])
        by_corpus: dict[str, list[CatalogEntry]] = defaultdict(list)
        for entry in entries:
            if entry.base_model == self._base_model:
                by_corpus[entry.corpus].append(entry)
        served = []
        for corpus in corpora:
            own = by_corpus[corpus.name]
            aliased = [(alias, resolved_of(entry, alias)) for entry in own for alias in entry.aliases]
            cartridges = tuple(found for _, found in sorted(aliased, key=_champion_first) if found is not None)
            served.append(ServedCorpus(corpus.name, int(corpus.created_at.timestamp()), cartridges))
        return tuple(served)


def _refuse_gone(entry: CatalogEntry, reference: CorpusReference) -> None:
    if entry.status in (Status.RETIRED, Status.DELETED):
        erased = entry.status is Status.DELETED
        raise GoneError(
            f"The Cartridge {str(reference)!r} was {'erased' if erased else 'retired'}.",
            "GET /v1/models lists what is served.",
            param="model",
            code="cartridge_erased" if erased else "cartridge_retired",
        )


def _champion_first(pair: tuple[str, ResolvedCartridge | None]) -> tuple[bool, str]:
    return pair[0] != CHAMPION, pair[0]


def resolved_of(entry: CatalogEntry, alias: str | None = None) -> ResolvedCartridge | None:
    """What serving needs of a catalog entry; None where it was never registered."""
    if entry.artifact_key is None or entry.version is None:
        return None
    return ResolvedCartridge(
        tenant=entry.tenant,
        corpus=entry.corpus,
        version=entry.version,
        alias=alias,
        aliases=entry.aliases,
        digest=entry.digest,
        base_model=entry.base_model,
        num_tokens=entry.num_tokens,
        kv_bytes=entry.kv_bytes,
        artifact_key=entry.artifact_key,
        corpus_digest=entry.corpus_digest,
        created_at=entry.created_at.isoformat(),
        benchmark=entry.benchmark,
        num_questions=entry.num_questions,
        score=entry.score,
        icl_score=entry.icl_score,
        icl_tokens=entry.icl_tokens,
    )
