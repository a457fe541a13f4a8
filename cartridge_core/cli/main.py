"""The `cartridge` command, put together."""

from typing import Annotated

import typer

from cartridge_core import __version__
from cartridge_core.cli import (
    ask,
    audit,
    catalog,
    composing,
    corpus,
    doctor,
    engine,
    gc,
    key,
    making,
    reference,
    serve,
    shelf,
    shop,
    start,
)
from cartridge_core.cli.app import add_registered_commands, new_app

app = new_app("Cartridge Foundry: from a folder of documents to a promoted Cartridge (a trained KV cache).")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"cartridge {__version__}")
        raise typer.Exit


@app.callback()
def frame(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Cartridge Foundry: from a folder of documents to a promoted Cartridge (a trained KV cache).

    Start with `cartridge quickstart`, or with your own documents: `cartridge build NAME PATH...`.
    """


app.add_typer(corpus.app, name="corpus")
for command in (
    making.synthesize,
    making.train,
    making.evaluate,
    composing.compose,
    shop.register,
    shop.promote,
    shop.rollback,
    shop.retire,
    shop.delete,
    shop.export,
):
    app.command()(command)
app.command("learn-start")(start.learn_start)
app.command("starts")(start.list_starts)
app.command("import")(shop.import_)
app.command("list")(shelf.list_)
app.command("show")(shelf.show_)
app.command()(ask.ask)
app.command()(serve.serve)
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": False})(engine.engine)
app.command()(audit.audit)
app.command()(doctor.doctor)
app.command()(gc.gc)
app.add_typer(catalog.app, name="catalog")
app.add_typer(key.app, name="key")
app.add_typer(reference.app, name="reference")
add_registered_commands(app)


def main() -> None:
    """Run the command line."""
    app()
