"""Tables of the catalog.

Everything but `aliases`, `api_keys` and `pins` is append-only. A Cartridge's row says what it is; what happens to it
later (registrations, evaluations, status changes, erasure) are further rows beside it, so that history cannot be
rewritten.
"""

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, Boolean, Double, Index, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column, validates

from cartridge_core.catalog.base import DIGEST, NAME, AppendOnly, Base, Row, UtcDateTime, keys, now
from cartridge_core.settings import valid_name


class CorpusRow(Row, AppendOnly, Base):
    """A name for documents that may change over time."""

    __tablename__ = "corpora"
    __table_args__ = keys(("name",))

    name: Mapped[str] = mapped_column(NAME)
    """What users and applications call it."""

    @validates("name")
    def _is_a_name(self, field: str, value: str) -> str:
        return valid_name(value, "corpus name")


class CorpusVersionRow(Row, AppendOnly, Base):
    """The content of a corpus at one time; the same content is the same version."""

    __tablename__ = "corpus_versions"
    __table_args__ = keys(("corpus_id", "digest"), ("corpus_id", "number"), references=(("corpus_id", "corpora"),))

    corpus_id: Mapped[int]
    number: Mapped[int]
    """1, 2, 3, ... within the corpus."""
    digest: Mapped[str] = mapped_column(DIGEST)
    """Digest over the ordered document digests."""
    num_documents: Mapped[int | None]
    """Documents read; None where only the digest is known, as with an imported Cartridge."""
    num_skipped: Mapped[int | None]
    """Files that could not be read."""
    uri: Mapped[str | None] = mapped_column(Text)
    """Where the documents came from."""


class BaseModelRow(Row, AppendOnly, Base):
    """A base model at one revision."""

    __tablename__ = "base_models"
    __table_args__ = (
        *keys(),
        # Named by hand: the conventional name is longer than PostgreSQL's 63 bytes.
        UniqueConstraint(
            "tenant", "model_id", "revision", "config_digest", "tokenizer_digest", name="uq_base_models_identity"
        ),
    )

    model_id: Mapped[str] = mapped_column(String(255))
    """Hub id or folder name."""
    revision: Mapped[str] = mapped_column(String(64))
    config_digest: Mapped[str] = mapped_column(DIGEST)
    tokenizer_digest: Mapped[str] = mapped_column(DIGEST)


class DatasetRow(Row, AppendOnly, Base):
    """Synthetic conversations about one corpus version."""

    __tablename__ = "datasets"
    __table_args__ = keys(
        ("corpus_version_id", "digest"),
        references=(("corpus_version_id", "corpus_versions"), ("base_model_id", "base_models")),
    )

    corpus_version_id: Mapped[int]
    base_model_id: Mapped[int]
    """The teacher."""
    digest: Mapped[str] = mapped_column(DIGEST)
    num_conversations: Mapped[int | None]
    """None where only the digest is known."""


class CartridgeRow(Row, AppendOnly, Base):
    """A Cartridge of a corpus."""

    __tablename__ = "cartridges"
    __table_args__ = (
        *keys(
            ("corpus_version_id", "digest"),
            references=(
                ("corpus_version_id", "corpus_versions"),
                ("base_model_id", "base_models"),
                ("dataset_id", "datasets"),
            ),
        ),
        Index(None, "tenant", "digest"),
    )

    corpus_version_id: Mapped[int]
    base_model_id: Mapped[int]
    dataset_id: Mapped[int | None]
    """None for next-token training."""
    digest: Mapped[str] = mapped_column(DIGEST)
    """sha256 of the canonical manifest."""
    num_tokens: Mapped[int]
    kv_bytes: Mapped[int] = mapped_column(BigInteger)
    """Bytes of keys and values in the base model's type; the bytes of the files are the registration's."""
    manifest: Mapped[dict[str, Any]] = mapped_column(JSON, deferred=True)
    """The manifest in full: its digest can be checked without the files. Kilobytes: read where it is asked for."""


class RegistrationRow(Row, AppendOnly, Base):
    """Where a Cartridge is: its files and its version in MLflow. The newest row counts, so that stores may move."""

    __tablename__ = "registrations"
    __table_args__ = (
        *keys(references=(("cartridge_id", "cartridges"),)),
        Index(None, "tenant", "cartridge_id"),
    )

    cartridge_id: Mapped[int]
    model_name: Mapped[str] = mapped_column(String(255))
    version: Mapped[int]
    model_id: Mapped[str] = mapped_column(String(64))
    """MLflow's id of the logged model."""
    run_id: Mapped[str] = mapped_column(String(64))
    artifact_uri: Mapped[str] = mapped_column(Text)
    """Folder of the files, fully resolved: a path or `s3://bucket/...`."""
    artifact_key: Mapped[str] = mapped_column(Text)
    """The same folder as a key of the artifact store."""
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    """Bytes of the files."""


class EvaluationRow(Row, AppendOnly, Base):
    """One graded comparison; the newest row counts. Questions and replies stay in the report, not here."""

    __tablename__ = "evaluations"
    __table_args__ = keys(("cartridge_id", "digest"), references=(("cartridge_id", "cartridges"),))

    cartridge_id: Mapped[int]
    digest: Mapped[str] = mapped_column(DIGEST)
    """Digest of the evaluation report."""
    benchmark: Mapped[str] = mapped_column(String(63))
    num_questions: Mapped[int]
    score: Mapped[float | None] = mapped_column(Double)
    """The Cartridge's score, 0 to 1."""
    icl_score: Mapped[float | None] = mapped_column(Double)
    """Score with the whole corpus in context; None where it does not fit."""
    figures: Mapped[dict[str, Any]] = mapped_column(JSON)
    """Scores of all arms."""
    report_key: Mapped[str] = mapped_column(Text)
    """Folder of the report in the artifact store."""


class CompositionEvaluationRow(Row, AppendOnly, Base):
    """One graded composition of several Cartridges and the gate's answer; the newest row counts."""

    __tablename__ = "composition_evaluations"
    __table_args__ = (*keys(), Index(None, "tenant", "composition"))

    composition: Mapped[str] = mapped_column(DIGEST)
    """Digest of the list of Cartridge digests, in order."""
    cartridges: Mapped[list[str]] = mapped_column(JSON)
    """Digests of the Cartridges, in order."""
    digest: Mapped[str] = mapped_column(DIGEST)
    """Digest of the evaluation report."""
    num_questions: Mapped[int]
    """Questions about all corpora."""
    score: Mapped[float | None] = mapped_column(Double)
    """The composition's score over all of them, 0 to 1."""
    icl_score: Mapped[float | None] = mapped_column(Double)
    """Score with all corpora in context; None where they do not fit."""
    figures: Mapped[dict[str, Any]] = mapped_column(JSON)
    """Scores of all arms, corpus by corpus."""
    passed: Mapped[bool] = mapped_column(Boolean)
    """Whether the gate lets it be served."""
    gate: Mapped[dict[str, Any]] = mapped_column(JSON)
    """What was asked of it."""
    reason: Mapped[str] = mapped_column(Text)
    """What the gate found."""
    actor: Mapped[str] = mapped_column(String(255), default="")


class StatusChangeRow(Row, AppendOnly, Base):
    """What happened to a Cartridge; the newest row is its status."""

    __tablename__ = "status_changes"
    __table_args__ = (
        *keys(references=(("cartridge_id", "cartridges"),)),
        Index(None, "tenant", "cartridge_id"),
    )

    cartridge_id: Mapped[int]
    status: Mapped[str] = mapped_column(String(16))
    """registered, published, retired, deleted or restored."""
    reason: Mapped[str] = mapped_column(Text, default="")
    actor: Mapped[str] = mapped_column(String(255), default="")
    """Who asked for it, as far as anybody said."""


class TombstoneRow(Row, AppendOnly, Base):
    """Proof of an erasure: what was removed, when and why."""

    __tablename__ = "tombstones"
    __table_args__ = (
        *keys(references=(("cartridge_id", "cartridges"),)),
        Index(None, "tenant", "cartridge_id"),
    )

    cartridge_id: Mapped[int]
    digest: Mapped[str] = mapped_column(DIGEST)
    removed: Mapped[list[str]] = mapped_column(JSON)
    """Addresses of the objects that were removed."""
    reason: Mapped[str] = mapped_column(Text, default="")
    actor: Mapped[str] = mapped_column(String(255), default="")


class AliasRow(Row, Base):
    """Which Cartridge serves a corpus under a name: the one movable thing, and the truth about what is served."""

    __tablename__ = "aliases"
    __table_args__ = keys(("corpus_id", "name"), references=(("corpus_id", "corpora"), ("cartridge_id", "cartridges")))

    corpus_id: Mapped[int]
    name: Mapped[str] = mapped_column(NAME)
    cartridge_id: Mapped[int]
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now, onupdate=now)

    @validates("name")
    def _is_a_name(self, field: str, value: str) -> str:
        return valid_name(value, "alias")


class AliasChangeRow(Row, AppendOnly, Base):
    """A move of an alias."""

    __tablename__ = "alias_changes"
    __table_args__ = (
        *keys(references=(("corpus_id", "corpora"), ("cartridge_id", "cartridges"))),
        Index(None, "tenant", "corpus_id", "name"),
    )

    corpus_id: Mapped[int]
    name: Mapped[str] = mapped_column(NAME)
    action: Mapped[str] = mapped_column(String(16))
    """promote, rollback or clear."""
    cartridge_id: Mapped[int | None]
    """Where it points since; None when it was cleared."""
    reason: Mapped[str] = mapped_column(Text, default="")
    actor: Mapped[str] = mapped_column(String(255), default="")


class PinRow(Row, Base):
    """A Cartridge that gateways keep in memory whatever comes."""

    __tablename__ = "pins"
    __table_args__ = keys(("cartridge_id",), references=(("cartridge_id", "cartridges"),))

    cartridge_id: Mapped[int]
    actor: Mapped[str] = mapped_column(String(255), default="")
    """Who asked for it."""


class ApiKeyRow(Row, Base):
    """A key to the gateway. The secret itself is nowhere: its digest is enough to know it again."""

    __tablename__ = "api_keys"
    __table_args__ = (*keys(("key_id",)), Index(None, "key_id"))

    key_id: Mapped[str] = mapped_column(String(16))
    """The key's public part, by which it is found, listed and revoked."""
    name: Mapped[str] = mapped_column(NAME)
    """What it is for."""
    token_sha256: Mapped[str] = mapped_column(DIGEST)
    """Digest of the whole key; 256 random bits need no slow hash."""
    corpora: Mapped[list[str] | None] = mapped_column(JSON(none_as_null=True))
    """Corpora that it opens; None for all of the tenant's."""
    operator: Mapped[bool] = mapped_column(Boolean)
    """Whether it may load, pin, promote and roll back."""
    requests_per_minute: Mapped[int | None]
    """None for no limit."""
    revoked_at: Mapped[datetime | None] = mapped_column(UtcDateTime)

    @validates("name")
    def _is_a_name(self, field: str, value: str) -> str:
        return valid_name(value, "key name")


class AuditEventRow(Row, AppendOnly, Base):
    """Who did what, when."""

    __tablename__ = "audit_events"
    __table_args__ = (*keys(), Index(None, "tenant", "topic"))

    actor: Mapped[str] = mapped_column(String(255))
    """Who asked for it, as far as anybody said."""
    action: Mapped[str] = mapped_column(String(32))
    """A key of `audit.Action`."""
    subject: Mapped[str] = mapped_column(String(255))
    """What it was done to."""
    topic: Mapped[str] = mapped_column(String(255))
    """The corpus or the key in question: the subject up to its alias or digest. By it lines are found."""
    details: Mapped[dict[str, Any]] = mapped_column(JSON)
    """What else there is to say; never a secret, nor any text of a corpus."""
