"""`cartridge doctor`: do the stores agree?"""

from datetime import timedelta
from typing import Annotated

import typer

from cartridge_core.cli.actor import actor
from cartridge_core.cli.console import JsonOption, listing, progress_bars, show
from cartridge_core.settings import Settings


def doctor(
    check: Annotated[
        list[str] | None, typer.Option(help="Only this check; may be repeated. `digests` reads every stored byte.")
    ] = None,
    repair: Annotated[bool, typer.Option("--repair", help="Set right what can be.")] = False,
    grace_minutes: Annotated[
        float, typer.Option(min=0, help="What is younger may be work that goes on: it is left alone.")
    ] = 60,
    as_json: JsonOption = False,
) -> None:
    """Find out where catalog, artifact store and MLflow disagree. Exit code 1 while something is wrong.

    Example: `cartridge doctor --repair`
    """
    from cartridge_core.upkeep.doctor import examine

    grace = timedelta(minutes=grace_minutes)
    with progress_bars() as progress:
        found = examine(Settings(), check or (), repair=repair, grace=grace, progress=progress, actor=actor())
    wrong = [diagnosis for diagnosis in found if not diagnosis.repaired]
    rows = [
        (
            "repaired" if one.repaired else "failed" if one.error else "wrong",
            one.trouble.check,
            one.trouble.subject,
            one.trouble.problem,
            one.error or (one.trouble.remedy if repair or one.trouble.repair is None else "`--repair` sets it right"),
        )
        for one in found
    ]
    value = {"ok": not wrong, "troubles": [one.as_json() for one in found]}
    human = listing(("", "check", "subject", "problem", "what to do"), rows) if rows else "Nothing is wrong."
    show(value, as_json, human)
    if wrong:
        raise typer.Exit(1)
