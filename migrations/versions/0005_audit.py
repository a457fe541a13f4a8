"""The audit log: who did what, when; nobody can change or remove a line of it."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0005"
down_revision: str | None = "0004"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None

TABLE = "audit_events"


def upgrade() -> None:
    op.create_table(
        TABLE,
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("actor", sa.String(255), nullable=False),
        sa.Column("action", sa.String(32), nullable=False),
        sa.Column("subject", sa.String(255), nullable=False),
        sa.Column("topic", sa.String(255), nullable=False),
        sa.Column("details", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("id", name=f"pk_{TABLE}"),
        sa.UniqueConstraint("tenant", "id", name=f"uq_{TABLE}_tenant_id"),
    )
    op.create_index(f"ix_{TABLE}_tenant_topic", TABLE, ["tenant", "topic"])
    _guard()


def downgrade() -> None:
    op.drop_table(TABLE)


def _guard() -> None:
    """Triggers that keep rows as they were written; the function is the first migration's."""
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
    # REPLACE removes the row in its way without asking the delete trigger, unless each connection opts in.
    op.execute(
        f"CREATE TRIGGER {TABLE}_no_replace BEFORE INSERT ON {TABLE} "
        f"WHEN EXISTS (SELECT 1 FROM {TABLE} AS old WHERE old.id = NEW.id) {refuse}"
    )
