"""`cartridge ask`: a question through a Cartridge."""

from typing import Annotated

import typer
from rich.markup import escape

from cartridge_core.catalog import CHAMPION
from cartridge_core.cli.console import JsonOption, show
from cartridge_core.cli.options import CorpusName, Model
from cartridge_core.settings import Settings
from cartridge_core.stages.ask import ask as ask_stage

Reference = Annotated[str, typer.Option("--reference", "-r", help="Alias, version or beginning of a digest.")]


def ask(
    corpus: CorpusName,
    question: Annotated[str, typer.Argument(help="What to ask.")],
    reference: Reference = CHAMPION,
    model: Model = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest reply in tokens.")] = 256,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest token.")] = 0.0,
    as_json: JsonOption = False,
) -> None:
    """Ask a corpus through its promoted Cartridge.

    Example: `cartridge ask handbook "Who approves a purchase above 500 euros?"`
    """
    answer = ask_stage(Settings(), corpus, question, reference, model, max_new_tokens, temperature)
    source = f"{answer.cartridge[:12]}, {answer.num_tokens} tokens in place of the corpus, {answer.seconds} s"
    cut = "" if answer.finished else " [yellow](cut: raise --max-new-tokens)[/]"
    show(answer.as_json(), as_json, escape(answer.text) + cut, f"[dim]{source}[/]")
