"""`cartridge reference`: what the shipped reference model can do, and where its Cartridges start."""

from pathlib import Path
from typing import Annotated

import typer

from cartridge_core.cli.app import new_app
from cartridge_core.cli.console import JsonOption, facts, listing, progress_bars, show
from cartridge_core.cli.options import Model
from cartridge_core.settings import Settings
from cartridge_core.stages.model import borrowed_model

app = new_app("The reference model that ships with the library.")


@app.callback()
def group() -> None:
    """The reference model that ships with the library."""


@app.command()
def evaluate(
    model: Model = None,
    corpora: Annotated[int, typer.Option(min=1, help="Corpora of each size.")] = 8,
    questions: Annotated[int, typer.Option(min=1, help="Questions of each kind about each corpus.")] = 50,
    seed: Annotated[int, typer.Option(help="Number of the worlds; training draws none of them.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Measure the reference model on worlds and names it has never seen. Exit code 1 if it falls short.

    Example: `cartridge reference evaluate --corpora 2`
    """
    from cartridge_core.reference.evaluate import evaluate_reference

    with borrowed_model(Settings(), model or "reference") as base, progress_bars() as progress:
        abilities = evaluate_reference(base, corpora, questions, seed, progress)
    rows = [
        (
            ability.name,
            f"{ability.share:.1%}",
            f"{ability.low:.1%} to {ability.high:.1%}",
            ability.n,
            _asked(ability.at_least, ability.at_most),
            "" if ability.at_least is None and ability.at_most is None else "ok" if ability.ok else "short",
        )
        for ability in abilities
    ]
    table = listing(("ability", "share", "95% interval", "n", "asked", ""), rows)
    show([ability.record() for ability in abilities], as_json, table)
    if not all(ability.ok for ability in abilities):
        raise typer.Exit(1)


@app.command()
def learn_start(
    folder: Annotated[Path, typer.Argument(help="Where the start goes: a new folder.")],
    home: Annotated[Path, typer.Option(help="Where corpora and studies are kept.")] = Path("build/reference-start"),
    as_json: JsonOption = False,
) -> None:
    """Learn the start that ships for the reference model, from eight draws of its world: three quarters of an hour.

    Example: `cartridge reference learn-start /tmp/start`
    """
    from cartridge_core.stages.reference_start import reference_start

    # One thread: the shipped start was learnt so, and sums over several differ in their last digits.
    with progress_bars() as progress:
        start = reference_start(Settings(home=home, threads=1), progress).load()
    value = {"digest": start.digest, "num_tokens": start.num_tokens, "directory": start.save(folder)}
    show(value, as_json, facts("Learned start of the reference model", value))


def _asked(at_least: float | None, at_most: float | None) -> str:
    if at_least is not None:
        return f"≥ {at_least:.1%}"
    return "" if at_most is None else f"≤ {at_most:.1%}"
