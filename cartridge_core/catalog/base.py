"""What all tables of the catalog share."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    DateTime,
    Dialect,
    ForeignKeyConstraint,
    MetaData,
    String,
    TypeDecorator,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, validates

from cartridge_core.settings import valid_name

NAME = String(63)
"""Column type of tenants, corpora and aliases."""
DIGEST = String(64)
"""Column type of a hex sha256."""


class UtcDateTime(TypeDecorator[datetime]):
    """A moment in UTC, aware on both databases: SQLite keeps no time zone of its own."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """To UTC."""
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """From the database's form, which on SQLite is naive UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def now() -> datetime:
    """This moment, in UTC."""
    return datetime.now(UTC)


class Base(DeclarativeBase):
    """Declarative base; constraint names follow one convention, so that migrations can name them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class Row:
    """Columns of every table: a number, a tenant, the moment of writing."""

    id: Mapped[int] = mapped_column(primary_key=True, sort_order=-3)
    """Number of the row; always referred to together with the tenant."""
    tenant: Mapped[str] = mapped_column(NAME, sort_order=-2)
    """Whose row this is; part of every unique key and of every reference."""
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now, sort_order=-1)
    """When it was written, UTC."""

    @validates("tenant")
    def _tenant_is_a_name(self, field: str, value: str) -> str:
        return valid_name(value, field)


class AppendOnly:
    """Marks a table whose rows are written once and never changed: sessions refuse it, and so do triggers."""


def refers_to(column: str, table: str) -> ForeignKeyConstraint:
    """A reference that cannot cross tenants: it holds the tenant beside the number."""
    return ForeignKeyConstraint(["tenant", column], [f"{table}.tenant", f"{table}.id"])


def keys(*uniques: tuple[str, ...], references: tuple[tuple[str, str], ...] = ()) -> tuple[Any, ...]:
    """Table arguments: the key that others refer to, further unique keys (tenant first), and references."""
    return (
        UniqueConstraint("tenant", "id"),
        *(UniqueConstraint("tenant", *columns) for columns in uniques),
        *(refers_to(column, table) for column, table in references),
    )
