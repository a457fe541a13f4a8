"""Commands that run a flow: `cartridge quickstart`, `cartridge build` and `cartridge reap`.

The command line finds them by entry point and loads this module at every start, so Prefect is imported only inside the
functions.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from cartridge_core.cli.console import JsonOption, facts, progress_bars, show
from cartridge_core.cli.options import MaxErrorShare, MinQuestions, MinScoreWithoutIcl, Model, Teachers
from cartridge_core.errors import SettingsError

QUIET_PREFECT = {
    # Errors reach the user as one sentence; Prefect's own log would print each with its traceback first.
    "PREFECT_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    # The default of 20 s is too short for a busy laptop.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
}
"""Environment of a flow that a command runs; what the user has set stays."""


@contextmanager
def in_terminal() -> Iterator[None]:
    """Run a flow from the command line: quiet, and with the terminal's progress bars."""
    for name, value in QUIET_PREFECT.items():
        os.environ.setdefault(name, value)
    from prefect.exceptions import ParameterTypeError

    from flows.reporting import terminal

    with progress_bars() as bars:
        token = terminal.set(bars)
        try:
            yield
        except ParameterTypeError as error:
            raise SettingsError(" ".join(str(error).split()) + ".", "Correct it and try again.") from error
        finally:
            terminal.reset(token)


def build(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What to call the corpus.")],
    paths: Annotated[
        list[Path], typer.Argument(metavar="PATH...", help="Text and Markdown files, or folders of them.")
    ],
    model: Model = None,
    questions: Annotated[
        Path | None, typer.Option(help="JSONL file of evaluation questions. Default: the model asks them itself.")
    ] = None,
    num_tokens: Annotated[
        int | None,
        typer.Option("--tokens", "-p", help="Virtual tokens of the Cartridge. Default: a 20th of the corpus."),
    ] = None,
    num_conversations: Annotated[int | None, typer.Option(help="Conversations to study.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    min_share_of_icl: Annotated[float, typer.Option(help="The gate: share of in-context learning's score.")] = 0.95,
    min_score_without_icl: MinScoreWithoutIcl = None,
    min_questions: MinQuestions = None,
    max_error_share: MaxErrorShare = None,
    seed: Annotated[int | None, typer.Option(help="Seed of study and training.")] = None,
    study_config: Annotated[Path | None, typer.Option(help="TOML file with fields of the study.")] = None,
    training_config: Annotated[Path | None, typer.Option(help="TOML file with fields of the training.")] = None,
    processes: Annotated[int, typer.Option(min=1, help="Processes that train together.")] = 1,
    teacher: Teachers = None,
    as_json: JsonOption = False,
) -> None:
    """From documents to a promoted Cartridge in one go: the flow `train-cartridge`. Finished stages are not redone.

    Example: `cartridge build handbook ./docs --model path/or/hub-id --questions exam.jsonl`
    """
    with in_terminal():
        from flows.train_cartridge import train_cartridge

        result = train_cartridge(
            corpus=name,
            paths=[path.resolve() for path in paths],
            model=model,
            questions=questions.resolve() if questions else None,
            num_tokens=num_tokens,
            num_conversations=num_conversations,
            steps=steps,
            learning_rate=learning_rate,
            min_share_of_icl=min_share_of_icl,
            min_score_without_icl=min_score_without_icl,
            min_questions=min_questions,
            max_error_share=max_error_share,
            seed=seed,
            study_config=study_config,
            training_config=training_config,
            processes=processes,
            teachers=teacher,
        )
    promotion = result["promotion"]
    rows = {
        "corpus": result["corpus"]["digest"][:12],
        "dataset": f"{result['dataset']['digest'][:12]}, {result['dataset']['num_conversations']} conversations",
        "cartridge": f"{result['cartridge']['digest'][:12]}, {result['cartridge']['num_tokens']} tokens",
        "version": f"{result['version']['model_name']} v{result['version']['version']}",
        "promoted": "yes" if promotion["passed"] else f"no: {' '.join(promotion['reasons'])}",
        "ask it": f'cartridge ask {name} "..."' if promotion["passed"] else None,
    }
    show(result, as_json, facts(f"Built {name}", rows))


def quickstart(
    long: Annotated[bool, typer.Option("--long", help="A corpus twice the model's window instead.")] = False,
    as_json: JsonOption = False,
) -> None:
    """The sample corpus from documents to an answer, compared with in-context learning and next-token training.

    Example: `cartridge quickstart`
    """
    started = time.time()
    from cartridge_core.cli.quickstart import report_quickstart

    with in_terminal():
        from flows.quickstart import quickstart_flow

        result = quickstart_flow(long=long)
    report_quickstart(result, started, as_json)


def reap(
    max_requeues: Annotated[int, typer.Option(min=0, max=20, help="How often one run is started again.")] = 2,
    silence_seconds: Annotated[
        float, typer.Option(min=90, help="A running run that was silent for so long, and half as long again, crashed.")
    ] = 120.0,
    pending_seconds: Annotated[
        float, typer.Option(min=30, help="A run that a worker took so long ago and never started is started again.")
    ] = 600.0,
    as_json: JsonOption = False,
) -> None:
    """Start flow runs again that crashed, fell silent or were never started: the flow `reap-runs`, once, from here.

    Example: `cartridge reap --max-requeues 3`
    """
    for name, value in QUIET_PREFECT.items():
        os.environ.setdefault(name, value)
    from prefect.settings import PREFECT_API_URL

    from flows.reap_runs import reap_runs

    if PREFECT_API_URL.value() is None:
        raise SettingsError("No Prefect server is named.", "Set PREFECT_API_URL, such as http://127.0.0.1:4200/api.")
    done = reap_runs.fn(max_requeues, silence_seconds, pending_seconds)
    show(done, as_json, facts("Reaped", {name.replace("_", " "): count for name, count in done.items()}))
