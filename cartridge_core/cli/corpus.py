"""`cartridge corpus`: add, list and show corpora."""

from pathlib import Path
from typing import Annotated

import typer

from cartridge_core.cli.app import new_app
from cartridge_core.cli.console import JsonOption, facts, listing, progress_bars, show
from cartridge_core.cli.options import CorpusName, Version
from cartridge_core.settings import Settings
from cartridge_core.stages.ingest import IngestedCorpus, corpora, find_corpus, ingest

app = new_app("Corpora: the documents that Cartridges stand in for.")


@app.command()
def add(
    name: CorpusName,
    paths: Annotated[
        list[Path], typer.Argument(metavar="PATH...", help="Text and Markdown files, or folders of them.")
    ],
    as_json: JsonOption = False,
) -> None:
    """Read documents into a corpus. The same content added again is the same version.

    Example: `cartridge corpus add handbook ./docs`
    """
    with progress_bars() as progress:
        corpus = ingest(Settings(), name, paths, progress)
    _show(corpus, as_json, state="already there" if corpus.product.cached else "added")


@app.command("list")
def list_corpora(as_json: JsonOption = False) -> None:
    """List corpora with their versions, oldest first.

    Example: `cartridge corpus list`
    """
    found = [corpus.product.facts | {"added_at": corpus.product.finished_at} for corpus in corpora(Settings())]
    rows = [
        (c["name"], c["digest"][:12], c["num_documents"], f"{c['num_characters']:,}", c["added_at"][:19]) for c in found
    ]
    show(found, as_json, listing(("corpus", "version", "documents", "characters", "added (UTC)"), rows))


@app.command("show")
def show_corpus(name: CorpusName, version: Version = "", as_json: JsonOption = False) -> None:
    """Show a corpus version and the files that could not be read.

    Example: `cartridge corpus show handbook`
    """
    _show(find_corpus(Settings(), name, version), as_json)


def _show(corpus: IngestedCorpus, as_json: bool, state: str | None = None) -> None:
    told = corpus.product.facts
    skipped = told["skipped"]
    rows = {
        "version": told["digest"],
        "documents": told["num_documents"],
        "characters": f"{told['num_characters']:,}",
        "skipped": len(skipped),
        "state": state,
    }
    tables = [facts(f"Corpus {corpus.name}", rows)]
    if skipped:
        tables.append(listing(("skipped file", "reason"), [(skip["uri"], skip["reason"]) for skip in skipped]))
    show(told | {"cached": corpus.product.cached}, as_json, *tables)
