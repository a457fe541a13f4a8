"""A Cartridge as the catalog tells about it, gathered from all tables."""

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from cartridge_core.catalog.models import (
    AliasRow,
    BaseModelRow,
    CartridgeRow,
    CorpusRow,
    CorpusVersionRow,
    EvaluationRow,
    RegistrationRow,
)
from cartridge_core.catalog.statuses import Status, statuses_of
from cartridge_core.manifest import BaseModelIdentity, CartridgeManifest

RowT = TypeVar("RowT", RegistrationRow, EvaluationRow)


class CatalogEntry(BaseModel):
    """One Cartridge of one corpus. A value: it stays readable after the session, and does not follow later changes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cartridge_id: int
    """Number of the catalog's row."""
    tenant: str
    corpus: str
    """Name of the corpus."""
    corpus_version: int
    corpus_digest: str
    base_model: BaseModelIdentity
    digest: str
    """The Cartridge's digest."""
    num_tokens: int
    kv_bytes: int
    manifest: CartridgeManifest
    created_at: datetime
    status: Status
    aliases: tuple[str, ...]
    model_name: str | None = None
    """MLflow registered model; None before registration."""
    version: int | None = None
    """Version of the registered model."""
    model_id: str | None = None
    """MLflow's logged model."""
    run_id: str | None = None
    """MLflow's run."""
    artifact_uri: str | None = None
    """Folder of the files: a path or `s3://bucket/...`."""
    artifact_key: str | None = None
    """The same as a key of the artifact store."""
    size_bytes: int | None = None
    """Bytes of the files."""
    benchmark: str | None = None
    """Newest evaluation; None before the first."""
    num_questions: int | None = None
    score: float | None = None
    icl_score: float | None = None
    """Score with the corpus in context; None where it does not fit."""
    icl_tokens: int | None = None
    """Tokens of the corpus in context; None where that was not compared."""
    report_digest: str | None = None
    report_key: str | None = None
    """Folder of the newest report in the artifact store."""


def entries_of(session: Session, tenant: str, cartridges: Sequence[CartridgeRow]) -> list[CatalogEntry]:
    """Entries of these rows, in their order."""
    ids = [row.id for row in cartridges]
    statuses = statuses_of(session, tenant, ids)
    registrations = {row.cartridge_id: row for row in _newest(session, tenant, RegistrationRow, ids)}
    evaluations = {row.cartridge_id: row for row in _newest(session, tenant, EvaluationRow, ids)}
    aliases: dict[int, list[str]] = defaultdict(list)
    for alias in session.scalars(
        select(AliasRow).where(AliasRow.tenant == tenant, AliasRow.cartridge_id.in_(ids)).order_by(AliasRow.name)
    ):
        aliases[alias.cartridge_id].append(alias.name)
    sources = {
        row: (corpus, version, base)
        for row, corpus, version, base in session.execute(
            select(CartridgeRow.id, CorpusRow, CorpusVersionRow, BaseModelRow)
            .join(CorpusVersionRow, CorpusVersionRow.id == CartridgeRow.corpus_version_id)
            .join(CorpusRow, CorpusRow.id == CorpusVersionRow.corpus_id)
            .join(BaseModelRow, BaseModelRow.id == CartridgeRow.base_model_id)
            .where(CartridgeRow.tenant == tenant, CartridgeRow.id.in_(ids))
        ).tuples()
    }
    entries = []
    for row in cartridges:
        corpus, version, base = sources[row.id]
        registration, evaluation = registrations.get(row.id), evaluations.get(row.id)
        entries.append(
            CatalogEntry(
                cartridge_id=row.id,
                tenant=tenant,
                corpus=corpus.name,
                corpus_version=version.number,
                corpus_digest=version.digest,
                base_model=BaseModelIdentity(
                    id=base.model_id,
                    revision=base.revision,
                    config_digest=base.config_digest,
                    tokenizer_digest=base.tokenizer_digest,
                ),
                digest=row.digest,
                num_tokens=row.num_tokens,
                kv_bytes=row.kv_bytes,
                manifest=CartridgeManifest.model_validate(row.manifest),
                created_at=row.created_at,
                status=statuses[row.id],
                aliases=tuple(aliases[row.id]),
                **({} if registration is None else _registered(registration)),
                **({} if evaluation is None else _evaluated(evaluation)),
            )
        )
    return entries


def _newest(session: Session, tenant: str, table: type[RowT], ids: Sequence[int]) -> Sequence[RowT]:
    newest = (
        select(func.max(table.id))
        .where(table.tenant == tenant, table.cartridge_id.in_(ids))
        .group_by(table.cartridge_id)
    )
    return session.scalars(select(table).where(table.id.in_(newest))).all()


def _registered(row: RegistrationRow) -> dict[str, Any]:
    names = ("model_name", "version", "model_id", "run_id", "artifact_uri", "artifact_key", "size_bytes")
    return {name: getattr(row, name) for name in names}


def _evaluated(row: EvaluationRow) -> dict[str, Any]:
    return {
        "benchmark": row.benchmark,
        "num_questions": row.num_questions,
        "score": row.score,
        "icl_score": row.icl_score,
        "icl_tokens": row.figures.get("icl_tokens"),
        "report_digest": row.digest,
        "report_key": row.report_key,
    }
