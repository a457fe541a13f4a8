"""Alembic's entry point: migrates the connection it is handed, or the catalog that the settings name."""

from alembic import context
from sqlalchemy import Connection

from cartridge_core.catalog import models as models  # fills the metadata
from cartridge_core.catalog.base import Base
from cartridge_core.catalog.session import open_engine
from cartridge_core.settings import Settings


def migrate(connection: Connection) -> None:
    """Run the migrations that were asked for on this connection."""
    context.configure(connection=connection, target_metadata=Base.metadata, compare_type=True)
    with context.begin_transaction():
        context.run_migrations()


if context.is_offline_mode():
    context.configure(url=Settings().catalog_url, target_metadata=Base.metadata, literal_binds=True)
    with context.begin_transaction():
        context.run_migrations()
elif (handed := context.config.attributes.get("connection")) is not None:
    migrate(handed)
else:
    with open_engine(Settings().catalog_url).execution_options(sqlite_begin="EXCLUSIVE").begin() as own:
        migrate(own)
