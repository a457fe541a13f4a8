"""Roles of a PostgreSQL catalog: what a flow, a gateway and an operator may do, and no more."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cartridge_core.catalog.base import AppendOnly, Base
from cartridge_core.catalog.models import (
    AliasChangeRow,
    AliasRow,
    ApiKeyRow,
    AuditEventRow,
    PinRow,
    StatusChangeRow,
    TombstoneRow,
)
from cartridge_core.catalog.session import catalog_session
from cartridge_core.errors import SettingsError
from cartridge_core.settings import Settings, valid_name

_OPERATORS_WRITE = (AliasRow, AliasChangeRow, StatusChangeRow, TombstoneRow, AuditEventRow, ApiKeyRow, PinRow)


@dataclass(frozen=True)
class CatalogRoles:
    """Names of the roles. Whether one can log in, or is granted to users that can, is not decided here."""

    flows: str = "cartridge-flows"
    """Builds, registers and promotes: reads everything but keys, adds rows, moves aliases."""
    serving: str = "cartridge-serving"
    """The gateway: reads, and writes nothing."""
    operator: str = "cartridge-operator"
    """Promotes, retires, deletes, makes and revokes keys, keeps pins: what `cartridge` and the gateway's /admin do."""


def role_statements(roles: CatalogRoles | None = None, schema: str = "public") -> list[str]:
    """SQL that makes the roles and says what they may do; running it again after an upgrade brings them up to date.

    Nobody is granted a change or a removal of a row that is append-only; triggers refuse it to the owner too.

    Raises:
        SettingsError: A role cannot have its name.
    """
    roles = roles or CatalogRoles()
    names = [valid_name(name, "role") for name in (roles.flows, roles.serving, roles.operator)]
    if len(set(names)) < len(names):
        raise SettingsError("Two roles have the same name.", "Name three.")
    where = f'"{schema}"'
    return [*_made(names, where), *_granted(roles, where)]


def apply_roles(settings: Settings, roles: CatalogRoles | None = None) -> None:
    """Run `role_statements` on the catalog that the settings name.

    The user must own the tables, and be allowed to make roles where one is not there yet.

    Raises:
        SettingsError: It is no PostgreSQL.
        CatalogError: The database refuses.
    """
    if settings.catalog_url.startswith("sqlite"):
        raise SettingsError("An embedded catalog has no roles.", "Set CARTRIDGE_CATALOG_URL to a PostgreSQL.")
    with catalog_session(settings) as session:
        connection = session.connection()
        schema = str(connection.exec_driver_sql("SELECT current_schema()").scalar_one())
        for statement in role_statements(roles, schema):
            connection.exec_driver_sql(statement)


def _made(names: Sequence[str], schema: str) -> Iterator[str]:
    for name in names:
        # Asked first: an owner who may make no roles is refused also where the role is there.
        there = f"EXISTS (SELECT FROM pg_roles WHERE rolname = '{name}')"
        yield f'DO $$ BEGIN IF NOT {there} THEN CREATE ROLE "{name}" NOLOGIN; END IF; END $$'
        yield f'REVOKE ALL ON ALL TABLES IN SCHEMA {schema} FROM "{name}"'
        yield f'GRANT USAGE ON SCHEMA {schema} TO "{name}"'


def _granted(roles: CatalogRoles, schema: str) -> Iterator[str]:
    tables = {mapper.class_ for mapper in Base.registry.mappers}
    by_name = sorted(tables, key=lambda table: table.__tablename__)
    written = [table for table in by_name if table is not ApiKeyRow]
    readable = ", ".join([*(table.__tablename__ for table in by_name), "alembic_version"])
    yield f'GRANT SELECT ON {readable} TO "{roles.serving}", "{roles.operator}"'
    readable = ", ".join([*(table.__tablename__ for table in written), "alembic_version"])
    yield f'GRANT SELECT ON {readable} TO "{roles.flows}"'
    for role, mine in ((roles.flows, written), (roles.operator, _OPERATORS_WRITE)):
        yield f'GRANT INSERT ON {", ".join(table.__tablename__ for table in mine)} TO "{role}"'
        yield f'GRANT USAGE ON ALL SEQUENCES IN SCHEMA {schema} TO "{role}"'
        movable = [table.__tablename__ for table in mine if not issubclass(table, AppendOnly)]
        yield f'GRANT UPDATE, DELETE ON {", ".join(movable)} TO "{role}"'
