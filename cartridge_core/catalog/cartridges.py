"""Cartridges."""

import re
from collections import defaultdict
from collections.abc import Collection, Sequence

from sqlalchemy import case, false, func, select
from sqlalchemy.orm import Session

from cartridge_core.catalog.corpora import require_corpus
from cartridge_core.catalog.entry import STATUS, CatalogEntry, entries_of, entry_rows
from cartridge_core.catalog.insertion import add_once
from cartridge_core.catalog.models import (
    AliasRow,
    BaseModelRow,
    CartridgeRow,
    CorpusRow,
    CorpusVersionRow,
    DatasetRow,
    RegistrationRow,
)
from cartridge_core.catalog.statuses import Status
from cartridge_core.errors import CatalogError, NotFoundError
from cartridge_core.manifest import CartridgeManifest

_SHORTEST_DIGEST = 6
_GONE = (Status.RETIRED, Status.DELETED)
_ASKED_AT_ONCE = 500
"""Digests of one statement: databases bound the number of its parameters."""


def record_cartridge(
    session: Session,
    version: CorpusVersionRow,
    base_model: BaseModelRow,
    dataset: DatasetRow | None,
    manifest: CartridgeManifest,
) -> CartridgeRow:
    """The row of a Cartridge of a corpus version, written if it is new.

    Args:
        session: Open session.
        version: What it stands in for; its tenant owns the Cartridge.
        base_model: The model it is for.
        dataset: What it was trained on; None for next-token training.
        manifest: The Cartridge's manifest.
    """
    digest = manifest.digest
    same = select(CartridgeRow).where(
        CartridgeRow.tenant == version.tenant,
        CartridgeRow.corpus_version_id == version.id,
        CartridgeRow.digest == digest,
    )
    return add_once(
        session,
        lambda: session.scalar(same),
        lambda: CartridgeRow(
            tenant=version.tenant,
            corpus_version_id=version.id,
            base_model_id=base_model.id,
            dataset_id=None if dataset is None else dataset.id,
            digest=digest,
            num_tokens=manifest.num_tokens,
            kv_bytes=manifest.kv_bytes,
            manifest=manifest.model_dump(mode="json"),
        ),
    )


def cartridge_row(session: Session, tenant: str, cartridge_id: int) -> CartridgeRow:
    """The row with this number.

    Raises:
        NotFoundError: The tenant has no such row.
    """
    row = session.scalar(select(CartridgeRow).where(CartridgeRow.tenant == tenant, CartridgeRow.id == cartridge_id))
    if row is None:
        raise NotFoundError(f"There is no Cartridge number {cartridge_id} for tenant {tenant!r}.")
    return row


def manifest_of(session: Session, entry: CatalogEntry) -> CartridgeManifest:
    """The manifest of a Cartridge of the catalog.

    Raises:
        NotFoundError: The row is of another catalog.
    """
    return CartridgeManifest.model_validate(cartridge_row(session, entry.tenant, entry.cartridge_id).manifest)


def find_cartridge(session: Session, tenant: str, corpus: str, reference: str) -> CatalogEntry:
    """The Cartridge of a corpus that a user means.

    Args:
        session: Open session.
        tenant: Whose corpus.
        corpus: Name of the corpus.
        reference: An alias, a version number of the registered model (`3`), or the first six or more characters
            of the digest.

    Raises:
        NotFoundError: Nothing matches.
        CatalogError: More than one Cartridge matches.
    """
    owner = require_corpus(session, tenant, corpus)
    aliased = session.scalar(
        select(AliasRow.cartridge_id).where(
            AliasRow.tenant == tenant, AliasRow.corpus_id == owner.id, AliasRow.name == reference
        )
    )
    rows = entry_rows(tenant).where(CorpusRow.id == owner.id)
    if aliased is not None:
        rows = rows.where(CartridgeRow.id == aliased)
    elif re.fullmatch(rf"[0-9]{{1,{_SHORTEST_DIGEST - 1}}}", reference):
        rows = rows.where(RegistrationRow.version == int(reference))
    elif re.fullmatch(rf"[0-9a-f]{{{_SHORTEST_DIGEST},64}}", reference):
        rows = rows.where(CartridgeRow.digest.startswith(reference))
    else:
        rows = rows.where(false())
    found = entries_of(session, tenant, rows.order_by(CartridgeRow.id.desc()))
    if not found:
        raise NotFoundError(
            f"Corpus {corpus!r} has no Cartridge {reference!r}.",
            f"Give an alias, a version or the start of a digest; `cartridge list {corpus}` shows them.",
        )
    if len({entry.cartridge_id for entry in found}) > 1:
        several = ", ".join(f"{entry.digest[:12]} ({entry.base_model.id})" for entry in found)
        raise CatalogError(f"{reference!r} could be any of {several}.", "Give more of the digest.")
    return found[0]


def find_version(session: Session, tenant: str, corpus: str, version: int, model_name: str) -> CatalogEntry:
    """The Cartridge of a corpus that has a version of a registered model.

    Versions count for each registered model. Where this one has no such version, another's of the same number is
    given, so that a caller can tell it apart from none at all.

    Args:
        session: Open session.
        tenant: Whose corpus.
        corpus: Name of the corpus.
        version: Number of the version.
        model_name: MLflow's registered model.

    Raises:
        NotFoundError: There is no such corpus or version.
    """
    owner = require_corpus(session, tenant, corpus)
    numbered = entry_rows(tenant).where(CorpusRow.id == owner.id, RegistrationRow.version == version)
    this_first = case((RegistrationRow.model_name == model_name, 0), else_=1)
    for entry in entries_of(session, tenant, numbered.order_by(this_first, CartridgeRow.id.desc()).limit(1)):
        return entry
    raise NotFoundError(f"Corpus {corpus!r} has no version {version}.", f"`cartridge list {corpus}` shows them.")


def list_cartridges(
    session: Session,
    tenant: str,
    corpus: str | None = None,
    *,
    within: Collection[str] | None = None,
    include_deleted: bool = False,
    limit: int | None = None,
    before: int | None = None,
) -> list[CatalogEntry]:
    """Cartridges of a corpus, or of all corpora, the newest first.

    Args:
        session: Open session.
        tenant: Whose.
        corpus: Name of the corpus; None for all.
        within: Names of corpora beyond which nothing is listed; None for no such bound.
        include_deleted: Deleted ones too.
        limit: Most entries; None for all.
        before: Only those older than the one of this number (`cartridge_id`): the next page.

    Raises:
        NotFoundError: There is no such corpus.
    """
    statement = entry_rows(tenant).order_by(CartridgeRow.id.desc())
    if corpus is not None:
        owner = require_corpus(session, tenant, corpus)
        statement = statement.where(CorpusRow.id == owner.id)
    if within is not None:
        statement = statement.where(CorpusRow.name.in_(within))
    if not include_deleted:
        statement = statement.where(func.coalesce(STATUS, "") != Status.DELETED.value)
    if before is not None:
        statement = statement.where(CartridgeRow.id < before)
    return entries_of(session, tenant, statement if limit is None else statement.limit(limit))


def list_served(session: Session, tenant: str, corpora: Sequence[str]) -> list[CatalogEntry]:
    """Cartridges of these corpora that an alias points at, by the name of their corpus."""
    aliased = select(AliasRow.cartridge_id).where(AliasRow.tenant == tenant)
    statement = entry_rows(tenant).where(CartridgeRow.id.in_(aliased), CorpusRow.name.in_(corpora))
    return entries_of(session, tenant, statement.order_by(CorpusRow.name, CartridgeRow.id))


def list_gone(session: Session, digests: Collection[str]) -> list[CatalogEntry]:
    """Cartridges of these digests that nobody may serve any longer: retired or deleted, in every corpus that has them.

    Of all tenants: a gateway asks it about what it holds. One entry a digest; digests that the catalog does not know
    are left out.
    """
    tenants = list(session.scalars(select(BaseModelRow.tenant).distinct()))  # the index is by tenant and digest
    asked = sorted(digests)
    entries = list[CatalogEntry]()
    for start in range(0, len(asked), _ASKED_AT_ONCE):
        some = CartridgeRow.tenant.in_(tenants), CartridgeRow.digest.in_(asked[start : start + _ASKED_AT_ONCE])
        rows = session.execute(select(CartridgeRow.tenant, CartridgeRow.digest, CartridgeRow.id, STATUS).where(*some))
        gone, kept = defaultdict[str, dict[str, int]](dict), set[tuple[str, str]]()
        for tenant, digest, number, status in rows.tuples():
            if status in _GONE:
                gone[tenant][digest] = number
            else:
                kept.add((tenant, digest))
        for tenant, found in gone.items():
            numbers = [number for digest, number in found.items() if (tenant, digest) not in kept]
            entries += entries_of(session, tenant, entry_rows(tenant).where(CartridgeRow.id.in_(numbers)))
    return entries
