"""`cartridge learn-start`: where a base model's Cartridges begin."""

from typing import Annotated

import typer

from cartridge_core.cli.console import JsonOption, facts, progress_bars, show
from cartridge_core.cli.options import ConfigFile, Model
from cartridge_core.settings import Settings
from cartridge_core.stages.config import config_of
from cartridge_core.stages.ingest import find_corpus
from cartridge_core.stages.size import default_num_tokens
from cartridge_core.stages.start import learned_start
from cartridge_core.stages.study import find_dataset
from cartridge_core.training.start_config import StartConfig


def learn_start(
    corpora: Annotated[list[str], typer.Argument(metavar="CORPUS...", help="Two or more studied corpora.")],
    num_tokens: Annotated[
        int | None, typer.Option("--tokens", "-p", help="Its length. Default: a 20th of the shortest corpus.")
    ] = None,
    rounds: Annotated[int | None, typer.Option(help="How often the Cartridges' mean is taken. Default: 6.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of each corpus in a round. Default: 150.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the order of examples.")] = None,
    model: Model = None,
    config: ConfigFile = None,
    as_json: JsonOption = False,
) -> None:
    """Learn from the newest studies of several corpora where Cartridges of their base model should start.

    Once a base model: Cartridges of other corpora of the same kind then take a fraction of the steps. The same command
    after a kill goes on from the newest checkpoint.

    Example: `cartridge learn-start handbook price-list faq --tokens 512`

    Example: `cartridge train contracts --tokens 512 --steps 200 --init-from 3f9c2a1b`
    """
    settings = Settings()
    sources = [find_corpus(settings, name) for name in corpora]
    if num_tokens is None and config is None:
        num_tokens = min(default_num_tokens(settings, source, model) for source in sources)
    learning = config_of(StartConfig, config, num_tokens=num_tokens, rounds=rounds, steps=steps, seed=seed)
    studies = [(source, find_dataset(settings, source)) for source in sources]
    with progress_bars() as progress:
        start = learned_start(settings, studies, learning, model, progress)
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
