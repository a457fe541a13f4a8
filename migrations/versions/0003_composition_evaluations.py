"""Evaluations of compositions: which Cartridges may stand in front of one prompt together."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0003"
down_revision: str | None = "0002"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None

TABLE = "composition_evaluations"


def upgrade() -> None:
    op.create_table(
        TABLE,
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("composition", sa.String(64), nullable=False),
        sa.Column("cartridges", sa.JSON, nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("num_questions", sa.Integer, nullable=False),
        sa.Column("score", sa.Double),
        sa.Column("icl_score", sa.Double),
        sa.Column("figures", sa.JSON, nullable=False),
        sa.Column("passed", sa.Boolean, nullable=False),
        sa.Column("gate", sa.JSON, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("actor", sa.String(255), nullable=False),
        sa.PrimaryKeyConstraint("id", name=f"pk_{TABLE}"),
        sa.UniqueConstraint("tenant", "id", name=f"uq_{TABLE}_tenant_id"),
    )
    op.create_index(f"ix_{TABLE}_tenant_composition", TABLE, ["tenant", "composition"])
    _guard()


def downgrade() -> None:
    op.drop_table(TABLE)


def _guard() -> None:
    """The triggers of 0001 for this table too."""
    if op.get_context().dialect.name == "postgresql":
        for when, each in (("UPDATE OR DELETE", "ROW"), ("TRUNCATE", "STATEMENT")):
            op.execute(
                f"CREATE TRIGGER {TABLE}_append_only_{each.lower()} BEFORE {when} ON {TABLE} "
                f"FOR EACH {each} EXECUTE FUNCTION catalog_refuse_change()"
            )
        return
    refuse = f"BEGIN SELECT RAISE(ABORT, 'rows of {TABLE} are never changed or removed'); END"
    op.execute(f"CREATE TRIGGER {TABLE}_no_update BEFORE UPDATE ON {TABLE} {refuse}")
    op.execute(f"CREATE TRIGGER {TABLE}_no_delete BEFORE DELETE ON {TABLE} {refuse}")
    op.execute(
        f"CREATE TRIGGER {TABLE}_no_replace BEFORE INSERT ON {TABLE} "
        f"WHEN EXISTS (SELECT 1 FROM {TABLE} AS old WHERE old.id = NEW.id) {refuse}"
    )
