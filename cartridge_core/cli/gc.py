"""`cartridge gc`: room back from what nobody needs."""

from datetime import timedelta
from typing import Annotated

import typer

from cartridge_core.cli.actor import actor
from cartridge_core.cli.console import JsonOption, listing, progress_bars, show
from cartridge_core.settings import Settings


def gc(
    delete: Annotated[bool, typer.Option("--delete", help="Remove it. Without this nothing is touched.")] = False,
    grace_days: Annotated[float, typer.Option(min=0, help="What was retired or worked on more recently stays.")] = 30,
    as_json: JsonOption = False,
) -> None:
    """List, and with `--delete` remove, what no version, alias or pin needs.

    Retired Cartridges past the grace period (a tombstone stays), files that no row of the catalog needs, uploads and
    work that were interrupted, local copies.

    Example: `cartridge gc --grace-days 90`
    """
    from cartridge_core.upkeep.garbage import Removal, find_garbage, remove_garbage

    found = find_garbage(Settings(), timedelta(days=grace_days), actor())
    done = [Removal(garbage) for garbage in found]
    if delete:
        with progress_bars() as progress:
            done = remove_garbage(found, progress)
    total = sum(one.garbage.size for one in done if one.removed or not delete)
    rows = [
        (one.garbage.kind, one.garbage.subject, f"{one.garbage.size:,}", one.error or one.garbage.reason)
        for one in done
    ]
    said = f"{'Removed' if delete else 'Could be removed'}: {total:,} bytes." + (
        "" if delete or not done else " `--delete` removes it."
    )
    value = {"deleted": delete, "bytes": total, "garbage": [one.as_json() for one in done]}
    show(value, as_json, *([listing(("kind", "what", "bytes", "why"), rows)] if rows else []), said)
    if any(one.error for one in done):
        raise typer.Exit(1)
