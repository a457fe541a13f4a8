"""Opening a catalog."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sqlalchemy import Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError

from cartridge_core.catalog.immutability import CatalogSession
from cartridge_core.catalog.migration import head_revision, known_revision, require_current, upgrade
from cartridge_core.errors import CatalogError
from cartridge_core.settings import Settings, redact_url

_BUSY_SECONDS = 30


class Catalog:
    """An open catalog: keep one in a server, use `catalog_session` in a command.

    An embedded catalog (SQLite) is made and brought up to date on opening; a server's is only checked.

    Args:
        settings: Names the database.

    Raises:
        CatalogError: It cannot be reached, or its schema is not this software's.
    """

    def __init__(self, settings: Settings) -> None:
        self.tenant = settings.tenant
        self._url = settings.catalog_url
        with _explained(self._url):
            self.engine = open_engine(self._url)
            embedded = self.engine.dialect.name == "sqlite"
            require_current(self.engine, embedded=embedded)
        reading = {"sqlite_begin": "DEFERRED"} if embedded else {"isolation_level": "AUTOCOMMIT"}
        self._reading = self.engine.execution_options(**reading)
        self._writing = self.engine.execution_options(sqlite_begin="IMMEDIATE")

    @contextmanager
    def session(self, *, read_only: bool = False) -> Iterator[CatalogSession]:
        """A transaction: committed when the block ends well, else rolled back. Rows stay readable afterwards.

        Args:
            read_only: Nothing will be written: SQLite's writer lock is not taken, and PostgreSQL is not told where a
                transaction begins and ends, which costs a question two more answers. What two statements see may differ
                then as it does within a transaction there, of which each statement sees what was committed before it.

        Raises:
            CatalogError: The database refused.
        """
        engine = self._reading if read_only else self._writing
        with _explained(self._url), CatalogSession(engine, expire_on_commit=False) as session, session.begin():
            yield session

    def close(self) -> None:
        """Give all connections back."""
        self.engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@contextmanager
def catalog_session(settings: Settings, *, read_only: bool = False) -> Iterator[CatalogSession]:
    """One transaction on the catalog that the settings name, opened and closed for it.

    Raises:
        CatalogError: As `Catalog`.
    """
    with Catalog(settings) as catalog, catalog.session(read_only=read_only) as session:
        yield session


@dataclass(frozen=True)
class SchemaUpgrade:
    """What bringing a catalog up to date did."""

    catalog: str
    """Where it is, without its password."""
    before: str | None
    """Its schema revision; None for an empty database."""
    after: str
    """The revision that it has now."""


def upgrade_catalog(settings: Settings) -> SchemaUpgrade:
    """Bring the catalog that the settings name up to this software's schema; what is up to date stays as it is.

    Raises:
        CatalogError: It cannot be reached, or its schema is newer than this software.
    """
    with _explained(settings.catalog_url):
        engine = open_engine(settings.catalog_url)
        try:
            before = known_revision(engine)
            upgrade(engine)
        finally:
            engine.dispose()
    return SchemaUpgrade(redact_url(settings.catalog_url), before, head_revision())


def open_engine(url: str) -> Engine:
    """An engine whose transactions are real on SQLite too, without any check of the schema.

    Raises:
        CatalogError: The URL or its driver cannot be used.
    """
    try:
        parsed = make_url(url)
        if parsed.drivername == "postgresql":
            parsed = parsed.set(drivername="postgresql+psycopg")
        if parsed.get_backend_name() != "sqlite":
            return create_engine(parsed, pool_pre_ping=True)
        if parsed.database:
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
        engine = create_engine(parsed, connect_args={"timeout": _BUSY_SECONDS})
    except (ArgumentError, NoSuchModuleError, ImportError, OSError) as error:
        raise CatalogError(
            f"The catalog at {redact_url(url)} cannot be opened: {error}.",
            "Correct catalog_url; PostgreSQL needs the `postgres` extra.",
        ) from error
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, record: Any) -> None:
    # The driver's own transactions leave schema changes outside and take locks late; we say BEGIN ourselves.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute("PRAGMA foreign_keys = ON")
    # Without this, REPLACE would remove a guarded row without asking its trigger.
    cursor.execute("PRAGMA recursive_triggers = ON")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    mode = connection.get_execution_options().get("sqlite_begin", "DEFERRED")
    connection.exec_driver_sql(f"BEGIN {mode}")


@contextmanager
def _explained(url: str) -> Iterator[None]:
    try:
        yield
    except DBAPIError as error:
        raise CatalogError(
            f"The catalog at {redact_url(url)} refused: {str(error.orig).strip()}.",
            "Check that the database runs and may be written.",
        ) from error
    except SQLAlchemyError as error:
        raise CatalogError(f"The catalog at {redact_url(url)} failed: {error}.", "Check catalog_url.") from error
