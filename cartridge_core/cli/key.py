"""`cartridge key`: API keys of the gateway."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from cartridge_core.catalog import catalog_session
from cartridge_core.catalog.api_keys import create_api_key, list_api_keys, revoke_api_key
from cartridge_core.cli.actor import actor
from cartridge_core.cli.app import new_app
from cartridge_core.cli.console import JsonOption, facts, listing, show
from cartridge_core.errors import SettingsError
from cartridge_core.settings import Settings

app = new_app("API keys of the gateway.")


@app.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What it is for.")],
    corpus: Annotated[list[str] | None, typer.Option(help="A corpus that it opens; may be repeated.")] = None,
    operator: Annotated[bool, typer.Option("--operator", help="It may load, pin, promote and roll back.")] = False,
    requests_per_minute: Annotated[int | None, typer.Option(help="Most requests a minute.")] = None,
    to: Annotated[Path | None, typer.Option(help="File to write the key to, instead of showing it.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a key for the settings' tenant. It is shown once and kept nowhere.

    Example: `cartridge key create intranet --corpus handbook --requests-per-minute 600`
    """
    settings = Settings().as_operator()
    with _new_file(to) as write, catalog_session(settings) as session:
        key, token = create_api_key(
            session,
            settings.tenant,
            name,
            corpora=corpus or None,
            operator=operator,
            requests_per_minute=requests_per_minute,
            actor=actor(),
        )
        write(token)
    rows = {
        "key": token if to is None else None,
        "file": None if to is None else str(to),
        "id": key.key_id,
        "corpora": "all" if key.corpora is None else ", ".join(key.corpora),
        "operator": "yes" if key.operator else None,
        "a minute": key.requests_per_minute,
    }
    title = f"Key {name}: shown this once" if to is None else f"Key {name}"
    record = key.model_dump(mode="json") | ({"token": token} if to is None else {"file": str(to)})
    show(record, as_json, facts(title, rows))


@app.command("list")
def list_keys(as_json: JsonOption = False) -> None:
    """List the tenant's keys, revoked ones too.

    Example: `cartridge key list`
    """
    settings = Settings().as_operator()
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
    settings = Settings().as_operator()
    with catalog_session(settings) as session:
        key = revoke_api_key(session, settings.tenant, key_id, actor=actor())
    show(key.model_dump(mode="json"), as_json, facts(f"Revoked {key.name}", {"id": key.key_id, "at": key.revoked_at}))


@contextmanager
def _new_file(path: Path | None) -> Iterator[Callable[[str], object]]:
    """Something that writes a secret into a file that was not there, for its owner only; without a path, nowhere."""
    if path is None:
        yield lambda secret: None
        return
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise SettingsError(
            f"The key cannot be written to {path}: {error.strerror}.", "Name a new file in a folder that is there."
        ) from error
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            yield stream.write
    except BaseException:
        path.unlink(missing_ok=True)
        raise
