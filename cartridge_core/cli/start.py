"""`cartridge learn-start`: where a base model's Cartridges begin."""

from typing import Annotated

import typer

from cartridge_core.cli.console import JsonOption, facts, listing, progress_bars, show
from cartridge_core.cli.options import ConfigFile, Model
from cartridge_core.settings import Settings
from cartridge_core.stages.config import config_of
from cartridge_core.stages.size import default_num_tokens
from cartridge_core.stages.start import find_start, forget_start, learned_start, starts
from cartridge_core.stages.study import newest_studies
from cartridge_core.training.start_config import StartConfig


def learn_start(
    corpora: Annotated[list[str], typer.Argument(metavar="CORPUS...", help="Two or more studied corpora.")],
    num_tokens: Annotated[
        int | None, typer.Option("--tokens", "-p", help="Its length. Default: a 20th of the shortest corpus.")
    ] = None,
    rounds: Annotated[int | None, typer.Option(help="How often the Cartridges' mean is taken. Default: 6.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of each corpus in a round. Default: 150.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the order of examples.")] = None,
    begin: Annotated[
        str | None, typer.Option("--from", metavar="DIGEST", help="Go on from this learned start with other corpora.")
    ] = None,
    model: Model = None,
    config: ConfigFile = None,
    as_json: JsonOption = False,
) -> None:
    """Learn from the newest studies of several corpora where Cartridges of their base model should start.

    Once a base model: Cartridges of other corpora of the same kind then take a fraction of the steps. The same command
    after a kill goes on from the newest checkpoint.

    Example: `cartridge learn-start handbook price-list faq --tokens 512`

    Example: `cartridge learn-start leases tenders --tokens 512 --rounds 1 --from 3f9c2a1b`

    Example: `cartridge train contracts --tokens 512 --steps 200 --init-from 3f9c2a1b`
    """
    settings = Settings()
    studies = newest_studies(settings, corpora, model)
    earlier = find_start(settings, begin) if begin else None
    if num_tokens is None and config is None:
        num_tokens = min(default_num_tokens(settings, source, model) for source, _ in studies)
    learning = config_of(StartConfig, config, num_tokens=num_tokens, rounds=rounds, steps=steps, seed=seed)
    with progress_bars() as progress:
        start = learned_start(settings, studies, learning, model, progress, earlier)
    told = start.product.facts
    rows = {
        "digest": start.digest,
        "tokens": told["num_tokens"],
        "corpora": ", ".join(told["corpora"]),
        "folder": start.folder,
        "seconds": start.product.seconds,
    }
    value = told | {"directory": start.folder, "cached": start.product.cached}
    show(value, as_json, facts("Learned start", rows))


def list_starts(
    remove: Annotated[str | None, typer.Option(metavar="DIGEST", help="Remove this one; Cartridges stay.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List the learned starts, oldest first, or remove one: what has begun with it stays as it is.

    Example: `cartridge starts --json`

    Example: `cartridge starts --remove 3f9c2a1b`
    """
    settings = Settings()
    if remove is not None:
        forget_start(settings, remove)
    found = starts(settings)
    values = [
        start.product.facts
        | {
            "base_model": start.product.inputs["base_model"]["id"],
            "finished_at": start.product.finished_at,
            "directory": start.folder,
        }
        for start in found
    ]
    columns = ("digest", "tokens", "base model", "corpora", "learnt at")
    rows = [
        (v["digest"][:12], v["num_tokens"], v["base_model"], ", ".join(v["corpora"]), v["finished_at"][:19])
        for v in values
    ]
    nothing = "There is no learned start. Learn one with: cartridge learn-start CORPUS CORPUS..."
    show(values, as_json, listing(columns, rows) if rows else nothing)
