"""A Cartridge as the catalog tells about it, gathered from all tables."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict
from sqlalchemy import BindParameter, ScalarSelect, Select, bindparam, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from cartridge_core.catalog.models import (
    AliasRow,
    BaseModelRow,
    CartridgeRow,
    CorpusRow,
    CorpusVersionRow,
    EvaluationRow,
    RegistrationRow,
    StatusChangeRow,
)
from cartridge_core.catalog.statuses import Status
from cartridge_core.manifest import BaseModelIdentity


class CatalogEntry(BaseModel):
    """One Cartridge of one corpus. A value: it stays readable after the session, and does not follow later changes.

    It is light, so that lists of them are; `manifest_of` gives the manifest.
    """

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


Value = TypeVar("Value")

EntrySelect: TypeAlias = "Select[*tuple[Any, ...]]"
"""What selects entries."""


def _newest(
    table: type[RegistrationRow | EvaluationRow | StatusChangeRow], column: InstrumentedAttribute[Value]
) -> ScalarSelect[Value]:
    return (
        select(column)
        .where(table.tenant == CartridgeRow.tenant, table.cartridge_id == CartridgeRow.id)
        .order_by(table.id.desc())
        .limit(1)
        .correlate(CartridgeRow)
        .scalar_subquery()
    )


STATUS = _newest(StatusChangeRow, StatusChangeRow.status)
"""The newest status of a statement's Cartridge; NULL where nothing was said."""

_BASE_MODEL = {
    "id": BaseModelRow.model_id,
    "revision": BaseModelRow.revision,
    "config_digest": BaseModelRow.config_digest,
    "tokenizer_digest": BaseModelRow.tokenizer_digest,
}
# Columns by name, not whole rows of six tables: a resolution is asked for with every request.
_FIELDS: dict[str, Any] = {
    "cartridge_id": CartridgeRow.id,
    "corpus": CorpusRow.name,
    "corpus_version": CorpusVersionRow.number,
    "corpus_digest": CorpusVersionRow.digest,
    "digest": CartridgeRow.digest,
    "num_tokens": CartridgeRow.num_tokens,
    "kv_bytes": CartridgeRow.kv_bytes,
    "created_at": CartridgeRow.created_at,
    "status": STATUS,
    "model_name": RegistrationRow.model_name,
    "version": RegistrationRow.version,
    "model_id": RegistrationRow.model_id,
    "run_id": RegistrationRow.run_id,
    "artifact_uri": RegistrationRow.artifact_uri,
    "artifact_key": RegistrationRow.artifact_key,
    "size_bytes": RegistrationRow.size_bytes,
    "benchmark": EvaluationRow.benchmark,
    "num_questions": EvaluationRow.num_questions,
    "score": EvaluationRow.score,
    "icl_score": EvaluationRow.icl_score,
    "report_digest": EvaluationRow.digest,
    "report_key": EvaluationRow.report_key,
}
_COLUMNS = (
    *_FIELDS.values(),
    *_BASE_MODEL.values(),
    EvaluationRow.figures,
)


def entry_rows(tenant: str | BindParameter[str]) -> EntrySelect:
    """A statement over everything that entries are made of but their aliases, for `entries_of` to run.

    It selects from `CartridgeRow`, `CorpusRow` and the rows beside them; further conditions, order and limit may be
    added. What is newest is looked up by index for each Cartridge, so that one of a large catalog costs what one of a
    small one does.
    """
    return (
        select(*_COLUMNS)
        .select_from(CartridgeRow)
        .join(CorpusVersionRow, CorpusVersionRow.id == CartridgeRow.corpus_version_id)
        .join(CorpusRow, CorpusRow.id == CorpusVersionRow.corpus_id)
        .join(BaseModelRow, BaseModelRow.id == CartridgeRow.base_model_id)
        .outerjoin(RegistrationRow, RegistrationRow.id == _newest(RegistrationRow, RegistrationRow.id))
        .outerjoin(EvaluationRow, EvaluationRow.id == _newest(EvaluationRow, EvaluationRow.id))
        .where(CartridgeRow.tenant == tenant)
    )


def entries_of(
    session: Session, tenant: str, rows: EntrySelect, values: Mapping[str, str] | None = None
) -> list[CatalogEntry]:
    """Entries that a statement made of `entry_rows` selects, in its order; `values` are those of its parameters."""
    # Asked below the ORM, which has nothing to add to columns and takes its time to find that out.
    session.flush()
    connection = session.connection()
    found = connection.execute(rows, values).all()
    aliases: dict[int, list[str]] = defaultdict(list)
    ids = [row[0] for row in found]
    for cartridge_id, name in connection.execute(_ALIASES, {"tenant": tenant, "ids": ids}).tuples():
        aliases[cartridge_id].append(name)
    return [_entry(tenant, row, aliases[row[0]]) for row in found]


_ALIASES = (
    select(AliasRow.cartridge_id, AliasRow.name)
    .where(AliasRow.tenant == bindparam("tenant"), AliasRow.cartridge_id.in_(bindparam("ids", expanding=True)))
    .order_by(AliasRow.name)
)


def _entry(tenant: str, row: Sequence[Any], aliases: list[str]) -> CatalogEntry:
    fields = dict(zip(_FIELDS, row, strict=False))
    status, base, figures = fields.pop("status"), row[len(_FIELDS) : -1], row[-1]
    return CatalogEntry(
        **fields,
        tenant=tenant,
        base_model=BaseModelIdentity(**dict(zip(_BASE_MODEL, base, strict=True))),
        status=Status.REGISTERED if status is None else Status(status),
        aliases=tuple(aliases),
        icl_tokens=None if figures is None else figures.get("icl_tokens"),
    )
