"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

CorpusName = Annotated[str, typer.Argument(metavar="CORPUS", help="Name of the corpus.")]
Version = Annotated[str, typer.Option(help="Corpus version: the beginning of its digest. Default: the newest.")]
Model = Annotated[str | None, typer.Option(help="Base model: hub id or folder. Default: the settings' base_model.")]
Teachers = Annotated[
    list[str] | None,
    typer.Option(
        "--teacher",
        help="Address of a vLLM server with the base model; may be given several times. "
        "Default: the settings' teachers, or the model in this process.",
    ),
]
ConfigFile = Annotated[
    Path | None, typer.Option("--config", help="TOML file with fields of the configuration; options win over it.")
]
Reference = Annotated[str, typer.Argument(help="Alias, version or start of a digest.")]
MinScoreWithoutIcl = Annotated[
    float | None, typer.Option(help="The gate: least score where the corpus does not fit the model's window.")
]
MinQuestions = Annotated[int | None, typer.Option(help="The gate: fewest questions to rest on.")]
MaxErrorShare = Annotated[
    float | None, typer.Option(help="The gate: largest share of questions that could not be asked.")
]
Reason = Annotated[str, typer.Option(help="Why, for the record.")]
