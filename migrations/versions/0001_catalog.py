"""The catalog: corpora, base models, datasets, Cartridges, what happened to them, and what is served."""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from alembic import op

revision: str = "0001"
down_revision: str | None = None
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None

NAME, DIGEST = sa.String(63), sa.String(64)

# Append-only tables and their unique keys, in the order in which they refer to each other.
APPEND_ONLY: dict[str, tuple[tuple[str, ...], ...]] = {
    "corpora": (("name",),),
    "corpus_versions": (("corpus_id", "digest"), ("corpus_id", "number")),
    "base_models": (("model_id", "revision", "config_digest", "tokenizer_digest"),),
    "datasets": (("corpus_version_id", "digest"),),
    "cartridges": (("corpus_version_id", "digest"),),
    "registrations": (),
    "evaluations": (("cartridge_id", "digest"),),
    "status_changes": (),
    "tombstones": (),
    "alias_changes": (),
}


def upgrade() -> None:
    _table("corpora", sa.Column("name", NAME, nullable=False))
    _table(
        "corpus_versions",
        _reference("corpus_id", "corpora"),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("digest", DIGEST, nullable=False),
        sa.Column("num_documents", sa.Integer),
        sa.Column("num_skipped", sa.Integer),
        sa.Column("uri", sa.Text),
    )
    _table(
        "base_models",
        sa.Column("model_id", sa.String(255), nullable=False),
        sa.Column("revision", sa.String(64), nullable=False),
        sa.Column("config_digest", DIGEST, nullable=False),
        sa.Column("tokenizer_digest", DIGEST, nullable=False),
        unique_name="uq_base_models_identity",
    )
    _table(
        "datasets",
        _reference("corpus_version_id", "corpus_versions"),
        _reference("base_model_id", "base_models"),
        sa.Column("digest", DIGEST, nullable=False),
        sa.Column("num_conversations", sa.Integer),
    )
    _table(
        "cartridges",
        _reference("corpus_version_id", "corpus_versions"),
        _reference("base_model_id", "base_models"),
        _reference("dataset_id", "datasets", nullable=True),
        sa.Column("digest", DIGEST, nullable=False),
        sa.Column("num_tokens", sa.Integer, nullable=False),
        sa.Column("kv_bytes", sa.BigInteger, nullable=False),
        sa.Column("manifest", sa.JSON, nullable=False),
    )
    op.create_index("ix_cartridges_tenant_digest", "cartridges", ["tenant", "digest"])
    _table(
        "registrations",
        _reference("cartridge_id", "cartridges"),
        sa.Column("model_name", sa.String(255), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("model_id", sa.String(64), nullable=False),
        sa.Column("run_id", sa.String(64), nullable=False),
        sa.Column("artifact_uri", sa.Text, nullable=False),
        sa.Column("artifact_key", sa.Text, nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_registrations_tenant_cartridge_id", "registrations", ["tenant", "cartridge_id"])
    _table(
        "evaluations",
        _reference("cartridge_id", "cartridges"),
        sa.Column("digest", DIGEST, nullable=False),
        sa.Column("benchmark", sa.String(63), nullable=False),
        sa.Column("num_questions", sa.Integer, nullable=False),
        sa.Column("score", sa.Double),
        sa.Column("icl_score", sa.Double),
        sa.Column("figures", sa.JSON, nullable=False),
        sa.Column("report_key", sa.Text, nullable=False),
    )
    _table(
        "status_changes",
        _reference("cartridge_id", "cartridges"),
        sa.Column("status", sa.String(16), nullable=False),
        *_said(),
    )
    op.create_index("ix_status_changes_tenant_cartridge_id", "status_changes", ["tenant", "cartridge_id"])
    _table(
        "tombstones",
        _reference("cartridge_id", "cartridges"),
        sa.Column("digest", DIGEST, nullable=False),
        sa.Column("removed", sa.JSON, nullable=False),
        *_said(),
    )
    op.create_index("ix_tombstones_tenant_cartridge_id", "tombstones", ["tenant", "cartridge_id"])
    _table(
        "aliases",
        _reference("corpus_id", "corpora"),
        sa.Column("name", NAME, nullable=False),
        _reference("cartridge_id", "cartridges"),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
    )
    _table(
        "alias_changes",
        _reference("corpus_id", "corpora"),
        sa.Column("name", NAME, nullable=False),
        sa.Column("action", sa.String(16), nullable=False),
        _reference("cartridge_id", "cartridges", nullable=True),
        *_said(),
    )
    op.create_index("ix_alias_changes_tenant_corpus_id_name", "alias_changes", ["tenant", "corpus_id", "name"])
    _guard()


def downgrade() -> None:
    # Tables take their triggers with them.
    for table in ("aliases", *reversed(APPEND_ONLY)):
        op.drop_table(table)
    if op.get_context().dialect.name == "postgresql":
        op.execute("DROP FUNCTION catalog_refuse_change()")


def _reference(column: str, table: str, nullable: bool = False) -> sa.Column[int]:
    return sa.Column(column, sa.Integer, nullable=nullable, info={"refers_to": table})


def _said() -> tuple[sa.Column[Any], ...]:
    return sa.Column("reason", sa.Text, nullable=False), sa.Column("actor", sa.String(255), nullable=False)


def _table(name: str, *columns: sa.Column[Any], unique_name: str | None = None) -> None:
    """A table with the columns that all have, its unique keys, and references that cannot cross tenants."""
    uniques = APPEND_ONLY.get(name, (("corpus_id", "name"),))
    op.create_table(
        name,
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("tenant", NAME, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        *columns,
        sa.PrimaryKeyConstraint("id", name=f"pk_{name}"),
        sa.UniqueConstraint("tenant", "id", name=f"uq_{name}_tenant_id"),
        *(
            sa.UniqueConstraint("tenant", *key, name=unique_name or f"uq_{name}_tenant_{'_'.join(key)}")
            for key in uniques
        ),
        *(
            sa.ForeignKeyConstraint(
                ["tenant", column.name],
                [f"{column.info['refers_to']}.tenant", f"{column.info['refers_to']}.id"],
                name=f"fk_{name}_tenant_{column.name}",
            )
            for column in columns
            if "refers_to" in column.info
        ),
    )


def _guard() -> None:
    """Triggers that keep append-only rows as they were written, whoever asks."""
    if op.get_context().dialect.name == "postgresql":
        op.execute(
            "CREATE FUNCTION catalog_refuse_change() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE EXCEPTION 'rows of % are never changed or removed', TG_TABLE_NAME; END $$"
        )
        for table in APPEND_ONLY:
            for when, each in (("UPDATE OR DELETE", "ROW"), ("TRUNCATE", "STATEMENT")):
                op.execute(
                    f"CREATE TRIGGER {table}_append_only_{each.lower()} BEFORE {when} ON {table} "
                    f"FOR EACH {each} EXECUTE FUNCTION catalog_refuse_change()"
                )
        return
    for table, uniques in APPEND_ONLY.items():
        refuse = f"BEGIN SELECT RAISE(ABORT, 'rows of {table} are never changed or removed'); END"
        op.execute(f"CREATE TRIGGER {table}_no_update BEFORE UPDATE ON {table} {refuse}")
        op.execute(f"CREATE TRIGGER {table}_no_delete BEFORE DELETE ON {table} {refuse}")
        # REPLACE removes the row in its way without asking the delete trigger, unless each connection opts in.
        same = [" AND ".join(f"old.{column} = NEW.{column}" for column in ("tenant", *key)) for key in uniques]
        in_the_way = " OR ".join(["old.id = NEW.id", *(f"({condition})" for condition in same)])
        op.execute(
            f"CREATE TRIGGER {table}_no_replace BEFORE INSERT ON {table} "
            f"WHEN EXISTS (SELECT 1 FROM {table} AS old WHERE {in_the_way}) {refuse}"
        )
