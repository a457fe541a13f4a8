"""The command line's frame: errors become one sentence and exit code 1; other distributions may add commands."""

from importlib.metadata import entry_points
from typing import Any

import typer
from typer.core import TyperGroup

from cartridge_core.cli.console import say_error
from cartridge_core.errors import CartridgeError

COMMANDS = "cartridge_core.commands"
"""Entry-point group of functions that become commands under their entry's name."""

EXTRAS = {
    "torch": "train",
    "transformers": "train",
    "matplotlib": "eval",
    "mlflow": "registry",
    "prefect": "flows",
    "peft": "peft",
    "psycopg": "postgres",
    "fastapi": "gateway",
    "prometheus_client": "gateway",
    "starlette": "gateway",
    "uvicorn": "gateway",
}
"""Which extra brings a module that the light base does without."""


class ErrorsAsSentences(TyperGroup):
    """A group of commands that reports what a user can act on without a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; a `CartridgeError` or a missing extra ends it with exit code 1."""
        try:
            return super().invoke(ctx)
        except CartridgeError as error:
            say_error(error.problem, error.remedy)
            raise typer.Exit(1) from error
        except ModuleNotFoundError as error:
            extra = EXTRAS.get((error.name or "").split(".")[0])
            if extra is None:
                raise
            say_error(
                f"This needs the package {error.name}.", f"Install it with: pip install 'cartridge-foundry[{extra}]'."
            )
            raise typer.Exit(1) from error


def new_app(help_text: str) -> typer.Typer:
    """A group of commands in the house's style."""
    return typer.Typer(
        help=help_text,
        cls=ErrorsAsSentences,
        no_args_is_help=True,
        rich_markup_mode="markdown",
        pretty_exceptions_show_locals=False,
    )


def add_registered_commands(app: typer.Typer) -> None:
    """Add what installed distributions register; the functions' modules are loaded, so they must be light."""
    for entry in sorted(entry_points(group=COMMANDS), key=lambda entry: entry.name):
        app.command(entry.name)(entry.load())
