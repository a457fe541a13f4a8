"""`cartridge audit`: who did what, when."""

from datetime import UTC, datetime
from typing import Annotated

import typer

from cartridge_core.catalog import Action, catalog_session, list_events
from cartridge_core.cli.console import JsonOption, listing, messages, show
from cartridge_core.settings import Settings


def audit(
    action: Annotated[Action | None, typer.Option(help="Only this action.")] = None,
    actor: Annotated[str | None, typer.Option(help="Only what this one did.")] = None,
    subject: Annotated[
        str | None, typer.Option(help="Only what was done to this: `clinic` and all that is its, `clinic@champion`.")
    ] = None,
    since: Annotated[datetime | None, typer.Option(help="Only from then on, UTC.")] = None,
    before: Annotated[int | None, typer.Option(help="Only lines before the one of this number.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Most lines.")] = 100,
    as_json: JsonOption = False,
) -> None:
    """Show the audit log, the newest line first. Nobody can change or remove a line.

    Example: `cartridge audit --subject handbook --action promote`
    """
    settings = Settings()
    with catalog_session(settings, read_only=True) as session:
        events = list_events(
            session,
            settings.tenant,
            action=action,
            actor=actor,
            subject=subject,
            since=since.replace(tzinfo=UTC) if since else None,
            before=before,
            limit=limit,
        )
    rows = [
        (event.event_id, str(event.created_at)[:19], event.actor, event.action, event.subject, _said(event.details))
        for event in events
    ]
    columns = ("number", "at (UTC)", "who", "what", "to", "details")
    show([event.model_dump(mode="json") for event in events], as_json, listing(columns, rows))
    if len(events) == limit:
        messages().print(f"There may be more: --before {events[-1].event_id}", style="dim")


def _said(details: dict[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in details.items() if value not in (None, "", False))
