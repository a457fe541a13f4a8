"""Corpora and their versions."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import exists, func, select
from sqlalchemy.orm import Session, aliased

from cartridge_core.catalog.insertion import add_once
from cartridge_core.catalog.models import AliasRow, CorpusRow, CorpusVersionRow
from cartridge_core.errors import NotFoundError


@dataclass(frozen=True)
class CorpusEntry:
    """The newest version of a corpus."""

    name: str
    version: int
    digest: str
    num_documents: int | None
    num_skipped: int | None
    uri: str | None
    created_at: datetime


def record_corpus(
    session: Session,
    tenant: str,
    name: str,
    digest: str,
    *,
    num_documents: int | None = None,
    num_skipped: int | None = None,
    uri: str | None = None,
) -> CorpusVersionRow:
    """The version of a corpus with this content, written if it is new.

    Args:
        session: Open session.
        tenant: Whose corpus.
        name: The corpus, `[a-z0-9-]{1,63}`.
        digest: Digest of the content; the same content is the same version.
        num_documents: Documents read, where known.
        num_skipped: Files that could not be read, where known.
        uri: Where the documents came from.

    Raises:
        SettingsError: The name cannot be used.
    """
    corpus = add_once(session, lambda: corpus_named(session, tenant, name), lambda: CorpusRow(tenant=tenant, name=name))
    versions = select(CorpusVersionRow).where(
        CorpusVersionRow.tenant == tenant, CorpusVersionRow.corpus_id == corpus.id
    )
    highest = select(func.max(CorpusVersionRow.number)).where(
        CorpusVersionRow.tenant == tenant, CorpusVersionRow.corpus_id == corpus.id
    )
    return add_once(
        session,
        lambda: session.scalar(versions.where(CorpusVersionRow.digest == digest)),
        lambda: CorpusVersionRow(
            tenant=tenant,
            corpus_id=corpus.id,
            number=(session.scalar(highest) or 0) + 1,
            digest=digest,
            num_documents=num_documents,
            num_skipped=num_skipped,
            uri=uri,
        ),
    )


def corpus_named(session: Session, tenant: str, name: str) -> CorpusRow | None:
    """The corpus of that name, if there is one."""
    return session.scalar(select(CorpusRow).where(CorpusRow.tenant == tenant, CorpusRow.name == name))


def require_corpus(session: Session, tenant: str, name: str) -> CorpusRow:
    """The corpus of that name.

    Raises:
        NotFoundError: There is none; the message lists those there are.
    """
    corpus = corpus_named(session, tenant, name)
    if corpus is None:
        names = session.scalars(
            select(CorpusRow.name).where(CorpusRow.tenant == tenant).order_by(CorpusRow.name).limit(10)
        ).all()
        there = f"There are {', '.join(names)}." if names else "Add one with `cartridge corpus add`."
        raise NotFoundError(f"There is no corpus {name!r} for tenant {tenant!r}.", there)
    return corpus


def list_corpora(
    session: Session, tenant: str, *, limit: int | None = None, after: str | None = None, served: bool = False
) -> list[CorpusEntry]:
    """The newest version of every corpus, by name.

    Args:
        session: Open session.
        tenant: Whose.
        limit: Most entries; None for all.
        after: Only those whose name comes behind this one: the next page.
        served: Only those with an alias.
    """
    other = aliased(CorpusVersionRow)
    # Looked up by index for each corpus of the page, however many there are.
    newest = (
        select(other.id)
        .where(other.tenant == tenant, other.corpus_id == CorpusRow.id)
        .order_by(other.number.desc())
        .limit(1)
        .correlate(CorpusRow)
        .scalar_subquery()
    )
    statement = (
        select(CorpusRow.name, CorpusVersionRow)
        .join(CorpusVersionRow, CorpusVersionRow.id == newest)
        .where(CorpusRow.tenant == tenant)
        .order_by(CorpusRow.name)
    )
    if served:
        statement = statement.where(exists().where(AliasRow.tenant == tenant, AliasRow.corpus_id == CorpusRow.id))
    if after is not None:
        statement = statement.where(CorpusRow.name > after)
    rows = session.execute(statement if limit is None else statement.limit(limit))
    return [
        CorpusEntry(name, row.number, row.digest, row.num_documents, row.num_skipped, row.uri, row.created_at)
        for name, row in rows.tuples()
    ]
