"""`cartridge catalog`: care of the database that lists Cartridges."""

from dataclasses import asdict

from cartridge_core.catalog import upgrade_catalog
from cartridge_core.cli.app import new_app
from cartridge_core.cli.console import JsonOption, facts, show
from cartridge_core.settings import Settings

app = new_app("Care of the catalog, the database that lists Cartridges.")


@app.callback()
def group() -> None:
    """Care of the catalog, the database that lists Cartridges."""


@app.command()
def upgrade(as_json: JsonOption = False) -> None:
    """Bring the catalog's schema up to date; one that is stays as it is. Take a backup of a server first.

    The embedded catalog is brought up to date whenever it is opened; a server's (`CARTRIDGE_CATALOG_URL`) only by this
    command.

    Example: `cartridge catalog upgrade`
    """
    done = upgrade_catalog(Settings())
    title = "Already up to date" if done.before == done.after else "Brought up to date"
    show(asdict(done), as_json, facts(title, asdict(done) | {"before": done.before or "empty"}))
