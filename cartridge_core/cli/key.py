"""`cartridge key`: API keys of the gateway."""

from typing import Annotated

import typer

from cartridge_core.catalog import catalog_session
from cartridge_core.catalog.api_keys import create_api_key, list_api_keys, revoke_api_key
from cartridge_core.cli.actor import actor
from cartridge_core.cli.app import new_app
from cartridge_core.cli.console import JsonOption, facts, listing, show
from cartridge_core.settings import Settings

app = new_app("API keys of the gateway.")


@app.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What it is for.")],
    corpus: Annotated[list[str] | None, typer.Option(help="A corpus that it opens; may be repeated.")] = None,
    operator: Annotated[bool, typer.Option("--operator", help="It may load, pin, promote and roll back.")] = False,
    requests_per_minute: Annotated[int | None, typer.Option(help="Most requests a minute.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a key for the settings' tenant. It is shown once and kept nowhere.

    Example: `cartridge key create intranet --corpus handbook --requests-per-minute 600`
    """
    settings = Settings()
    with catalog_session(settings) as session:
        key, token = create_api_key(
            session,
            settings.tenant,
            name,
            corpora=corpus or None,
            operator=operator,
            requests_per_minute=requests_per_minute,
            actor=actor(),
        )
    rows = {
        "key": token,
        "id": key.key_id,
        "corpora": "all" if key.corpora is None else ", ".join(key.corpora),
        "operator": "yes" if key.operator else None,
        "a minute": key.requests_per_minute,
    }
    show(key.model_dump(mode="json") | {"token": token}, as_json, facts(f"Key {name}: shown this once", rows))


@app.command("list")
def list_keys(as_json: JsonOption = False) -> None:
    """List the tenant's keys, revoked ones too.

    Example: `cartridge key list`
    """
    settings = Settings()
    with catalog_session(settings, read_only=True) as session:
        keys = list_api_keys(session, settings.tenant)
    rows = [
        (
            key.key_id,
            key.name,
            "all" if key.corpora is None else ", ".join(key.corpora),
            "yes" if key.operator else "",
            key.requests_per_minute,
            str(key.created_at)[:19],
            "" if key.revoked_at is None else str(key.revoked_at)[:19],
        )
        for key in keys
    ]
    columns = ("id", "name", "corpora", "operator", "a minute", "created (UTC)", "revoked (UTC)")
    show([key.model_dump(mode="json") for key in keys], as_json, listing(columns, rows))


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="The key's id, as `cartridge key list` shows it.")],
    as_json: JsonOption = False,
) -> None:
    """Revoke a key; gateways refuse it after moments.

    Example: `cartridge key revoke 5f0c9a1be2d34c77`
    """
    settings = Settings()
    with catalog_session(settings) as session:
        key = revoke_api_key(session, settings.tenant, key_id, actor=actor())
    show(key.model_dump(mode="json"), as_json, facts(f"Revoked {key.name}", {"id": key.key_id, "at": key.revoked_at}))
