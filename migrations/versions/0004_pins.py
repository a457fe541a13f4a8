"""Pins: Cartridges that gateways keep in memory, across restarts."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0004"
down_revision: str | None = "0003"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None


def upgrade() -> None:
    op.create_table(
        "pins",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("cartridge_id", sa.Integer, nullable=False),
        sa.Column("actor", sa.String(255), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_pins"),
        sa.UniqueConstraint("tenant", "id", name="uq_pins_tenant_id"),
        sa.UniqueConstraint("tenant", "cartridge_id", name="uq_pins_tenant_cartridge_id"),
        sa.ForeignKeyConstraint(
            ["tenant", "cartridge_id"], ["cartridges.tenant", "cartridges.id"], name="fk_pins_tenant_cartridge_id"
        ),
    )


def downgrade() -> None:
    op.drop_table("pins")
