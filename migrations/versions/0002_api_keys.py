"""API keys of the gateway."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0002"
down_revision: str | None = "0001"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None


def upgrade() -> None:
    op.create_table(
        "api_keys",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("key_id", sa.String(16), nullable=False),
        sa.Column("name", sa.String(63), nullable=False),
        sa.Column("token_sha256", sa.String(64), nullable=False),
        sa.Column("corpora", sa.JSON),
        sa.Column("operator", sa.Boolean, nullable=False),
        sa.Column("requests_per_minute", sa.Integer),
        sa.Column("revoked_at", sa.DateTime(timezone=True)),
        sa.PrimaryKeyConstraint("id", name="pk_api_keys"),
        sa.UniqueConstraint("tenant", "id", name="uq_api_keys_tenant_id"),
        sa.UniqueConstraint("tenant", "key_id", name="uq_api_keys_tenant_key_id"),
    )
    # A caller shows a key and no tenant.
    op.create_index("ix_api_keys_key_id", "api_keys", ["key_id"])


def downgrade() -> None:
    op.drop_table("api_keys")
