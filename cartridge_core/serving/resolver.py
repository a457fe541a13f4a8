"""From a name to the Cartridge that the catalog's alias points at: the truth about what is served."""

import threading
from dataclasses import dataclass
from typing import Any

from cartridge_core.catalog import (
    CHAMPION,
    Catalog,
    CatalogEntry,
    CompositionEntry,
    Status,
    find_composition,
    list_cartridges,
    list_corpora,
    resolve,
)
from cartridge_core.errors import NotFoundError
from cartridge_core.manifest import BaseModelIdentity
from cartridge_core.registry import model_name
from cartridge_core.serving.errors import GoneError, NotPromotedError, WrongBaseModelError
from cartridge_core.serving.model_name import CorpusReference, unknown_model
from cartridge_core.serving.remembered import Freshness, Remembered
from cartridge_core.settings import Settings


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
        self._found: Remembered[tuple[str, CorpusReference], ResolvedCartridge] = Remembered(self._find, freshness)
        self._composed: Remembered[tuple[str, tuple[str, ...]], CompositionEntry | None] = Remembered(
            self._find_composition, freshness
        )
        self._listed: Remembered[str, tuple[ServedCorpus, ...]] = Remembered(self._list, freshness)

    async def resolve(self, tenant: str, reference: CorpusReference) -> ResolvedCartridge:
        """The Cartridge that a tenant means.

        Raises:
            UnknownModelError: There is no such corpus, alias or version.
            NotPromotedError: The corpus has no champion.
            GoneError: It was retired or erased.
            WrongBaseModelError: It belongs to another base model.
            CatalogDownError: The database does not answer, and nothing recent is remembered.
        """
        return await self._found.get((tenant, reference))

    async def composition(self, tenant: str, digests: tuple[str, ...]) -> CompositionEntry | None:
        """The newest evaluation of Cartridges of a tenant in this order; None where there is none.

        Raises:
            CatalogDownError: As `resolve`.
        """
        return await self._composed.get((tenant, digests))

    async def corpora(self, tenant: str) -> tuple[ServedCorpus, ...]:
        """All corpora of a tenant, by name.

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

    def _find(self, key: tuple[str, CorpusReference]) -> ResolvedCartridge:
        tenant, reference = key
        with self._catalogue.open().session(read_only=True) as session:
            try:
                if reference.alias is not None:
                    entry = resolve(session, tenant, reference.corpus, reference.alias)
                else:
                    entry = self._of_version(
                        list_cartridges(session, tenant, reference.corpus, include_deleted=True), tenant, reference
                    )
            except NotFoundError:
                there = any(corpus.name == reference.corpus for corpus in list_corpora(session, tenant))
                if there and reference.alias == CHAMPION:
                    raise NotPromotedError(
                        f"Nothing is served for the corpus {reference.corpus!r} yet.",
                        f"Promote a Cartridge: cartridge promote {reference.corpus}.",
                        param="model",
                    ) from None
                raise unknown_model(str(reference)) from None
        return self._checked(entry, reference)

    def _find_composition(self, key: tuple[str, tuple[str, ...]]) -> CompositionEntry | None:
        with self._catalogue.open().session(read_only=True) as session:
            return find_composition(session, *key)

    def _of_version(self, entries: list[CatalogEntry], tenant: str, reference: CorpusReference) -> CatalogEntry:
        numbered = [entry for entry in entries if entry.version == reference.version]
        ours = model_name(tenant, reference.corpus, self._base_model.id)
        # Versions count for each base model; another's of the same number is told apart from none at all.
        for entry in [entry for entry in numbered if entry.model_name == ours] or numbered:
            return entry
        raise NotFoundError(f"No version {reference.version}.")

    def _checked(self, entry: CatalogEntry, reference: CorpusReference) -> ResolvedCartridge:
        if entry.status in (Status.RETIRED, Status.DELETED):
            erased = entry.status is Status.DELETED
            raise GoneError(
                f"The Cartridge {str(reference)!r} was {'erased' if erased else 'retired'}.",
                "GET /v1/models lists what is served.",
                param="model",
                code="cartridge_erased" if erased else "cartridge_retired",
            )
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
            corpora = list_corpora(session, tenant)
            entries = list_cartridges(session, tenant)
        served = []
        for corpus in corpora:
            own = [e for e in entries if e.corpus == corpus.name and e.base_model == self._base_model]
            aliased = [(alias, resolved_of(entry, alias)) for entry in own for alias in entry.aliases]
            cartridges = tuple(found for _, found in sorted(aliased, key=_champion_first) if found is not None)
            served.append(ServedCorpus(corpus.name, int(corpus.created_at.timestamp()), cartridges))
        return tuple(served)


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
