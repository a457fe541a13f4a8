"""`cartridge catalog`: care of the database that lists Cartridges."""

from dataclasses import asdict
from typing import Annotated

import typer

from cartridge_core.catalog import upgrade_catalog
from cartridge_core.catalog.roles import CatalogRoles, apply_roles, role_statements
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


@app.command()
def roles(
    flows: Annotated[str, typer.Option(help="Role of the flows: reads and adds, moves aliases.")] = CatalogRoles.flows,
    serving: Annotated[str, typer.Option(help="Role of the gateway: reads only.")] = CatalogRoles.serving,
    operator: Annotated[str, typer.Option(help="Role of operators: aliases, keys, erasure.")] = CatalogRoles.operator,
    schema: Annotated[str, typer.Option(help="Schema of the printed statements.")] = "public",
    apply: Annotated[bool, typer.Option("--apply", help="Run them, as the owner of the tables.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Print the SQL of a PostgreSQL catalog's roles, or run it. Run it again after an upgrade.

    Roles that are not there yet are made, which the owner must be allowed to; those cannot log in: grant them to your
    users (`GRANT "cartridge-serving" TO gateway`).

    Example: `cartridge catalog roles | psql "$CATALOG"`
    """
    named = CatalogRoles(flows, serving, operator)
    statements = role_statements(named, schema)
    if apply:
        apply_roles(Settings(), named)
    shown = facts("Roles granted", asdict(named)) if apply else "\n".join(f"{statement};" for statement in statements)
    show(asdict(named) | {"statements": statements, "applied": apply}, as_json, shown)
