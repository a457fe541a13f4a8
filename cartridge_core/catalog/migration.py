"""Bringing a catalog's schema up to date."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine

import cartridge_core
from cartridge_core.errors import CatalogError
from cartridge_core.settings import redact_url

# Any number will do, as long as all upgraders take the same one.
_ADVISORY_LOCK = 4_506_062_660


def migrations_folder() -> Path:
    """Where the migrations are: inside an installed package, or at the top of a checkout.

    Raises:
        CatalogError: Neither is there.
    """
    package = Path(cartridge_core.__file__).resolve().parent
    for folder in (package / "migrations", package.parent / "migrations"):
        if (folder / "env.py").is_file():
            return folder
    raise CatalogError(f"The catalog's migrations are missing beside {package}.", "Install cartridge-foundry again.")


def alembic_config(connection: Connection | None = None) -> Config:
    """Alembic's configuration, on a connection where one is given."""
    config = Config()
    # Alembic reads a percent sign as interpolation.
    config.set_main_option("script_location", str(migrations_folder()).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def head_revision() -> str:
    """The schema revision that this software is written for."""
    head = ScriptDirectory.from_config(alembic_config()).get_current_head()
    if head is None:
        raise CatalogError("The catalog's migrations are empty.", "Install cartridge-foundry again.")
    return head


def current_revision(connection: Connection) -> str | None:
    """The schema revision of a database; None for an empty one."""
    return MigrationContext.configure(connection).get_current_revision()


def upgrade(engine: Engine, revision: str = "head") -> None:
    """Apply the migrations that are missing. Several at once wait for each other; the later ones find nothing to do."""
    with engine.execution_options(sqlite_begin="EXCLUSIVE").begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_ADVISORY_LOCK})")
        command.upgrade(alembic_config(connection), revision)


def known_revision(engine: Engine) -> str | None:
    """The schema revision of a catalog; None for an empty database.

    Raises:
        CatalogError: Its schema is newer than this software.
    """
    with engine.connect() as connection:
        current = current_revision(connection)
    known = {script.revision for script in ScriptDirectory.from_config(alembic_config()).walk_revisions()}
    if current is not None and current not in known:
        raise CatalogError(
            f"The catalog at {_place(engine)} has schema {current}, newer than this software's {head_revision()}.",
            "Upgrade cartridge-foundry.",
        )
    return current


def require_current(engine: Engine, *, embedded: bool) -> None:
    """Ask for a schema that this software can use; an embedded catalog is brought up to date on the way.

    Raises:
        CatalogError: A server's schema is outdated, or the schema is newer than this software.
    """
    current, head = known_revision(engine), head_revision()
    if current == head:
        return
    if not embedded:
        raise CatalogError(
            f"The catalog at {_place(engine)} has schema {current or 'none'}, this software needs {head}.",
            "Take a backup and run `cartridge catalog upgrade`.",
        )
    upgrade(engine)


def _place(engine: Engine) -> str:
    return redact_url(engine.url.render_as_string(hide_password=True))
