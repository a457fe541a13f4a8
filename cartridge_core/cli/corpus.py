"""`cartridge corpus`: add, list and show corpora; remove them, or forget a document, with all that was made of it."""

from pathlib import Path
from typing import Annotated

import typer

from cartridge_core.cli.actor import actor
from cartridge_core.cli.app import new_app
from cartridge_core.cli.console import JsonOption, facts, listing, progress_bars, show
from cartridge_core.cli.options import CorpusName, Version
from cartridge_core.settings import Settings
from cartridge_core.stages.ingest import IngestedCorpus, corpora, find_corpus, ingest

app = new_app("Corpora: the documents that Cartridges stand in for.")

Yes = Annotated[bool, typer.Option("--yes", help="Retire the Cartridges: nothing of it is served any more.")]
Erase = Annotated[bool, typer.Option("--erase", help="Erase everything that was made of it; tombstones stay.")]


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
    """List corpora with their versions; the last one of a corpus that was not withdrawn is the one that counts.

    Example: `cartridge corpus list`
    """
    found = [
        corpus.product.facts | {"added_at": corpus.reading.read_at, "withdrawn": corpus.reading.withdrawn or None}
        for corpus in corpora(Settings())
    ]
    rows = [
        (
            one["name"],
            one["digest"][:12],
            one["num_documents"],
            f"{one['num_characters']:,}",
            one["added_at"][:19],
            "withdrawn" if one["withdrawn"] else "",
        )
        for one in found
    ]
    show(found, as_json, listing(("corpus", "version", "documents", "characters", "added (UTC)", "state"), rows))


@app.command("show")
def show_corpus(name: CorpusName, version: Version = "", as_json: JsonOption = False) -> None:
    """Show a corpus version and the files that could not be read.

    Example: `cartridge corpus show handbook`
    """
    _show(find_corpus(Settings(), name, version), as_json)


@app.command()
def remove(name: CorpusName, yes: Yes = False, erase: Erase = False, as_json: JsonOption = False) -> None:
    """List what was made of a corpus; retire it with `--yes`, or erase it and the documents with `--yes --erase`.

    Example: `cartridge corpus remove handbook --yes --erase`
    """
    _withdraw(name, None, yes, erase, False, as_json)


@app.command()
def forget(
    name: CorpusName,
    document: Annotated[str, typer.Argument(help="Its path as the corpus has it, or the start of its digest.")],
    yes: Yes = False,
    erase: Erase = False,
    retrain: Annotated[bool, typer.Option("--retrain", help="Say how to train again without it.")] = False,
    as_json: JsonOption = False,
) -> None:
    """List what was made of a document; retire it with `--yes`, or erase it everywhere with `--yes --erase`.

    Erasing gives the corpus a new version without the document; retiring lets nothing more be made of it or read in it.

    Example: `cartridge corpus forget handbook docs/mayer.md --yes --erase --retrain`
    """
    _withdraw(name, document, yes, erase, retrain, as_json)


def _withdraw(name: str, document: str | None, yes: bool, erase: bool, retrain: bool, as_json: bool) -> None:
    from cartridge_core.upkeep.forgetting import dependents, withdraw
    from cartridge_core.upkeep.forgetting import forget as forget_all

    settings = Settings()
    found = dependents(settings, name, document)
    left = None
    if yes and erase:
        with progress_bars() as progress:
            left = forget_all(settings, found, progress, actor())
    elif yes:
        withdraw(settings, found, actor())
    done = "erased" if yes and erase else "retired" if yes else "nothing yet: `--yes` retires, `--yes --erase` erases"
    again = [f"cartridge {command} {name}" for command in ("synthesize", "train", "register", "promote")]
    rows = {
        "documents": ", ".join(one.uri for one in found.documents) or None,
        "versions": ", ".join(one.digest[:12] for one in found.versions),
        "datasets": ", ".join(one[:12] for one in found.datasets),
        "finished work": len(found.work),
        "unfinished work": found.unfinished or None,
        "also in corpora": ", ".join(found.elsewhere) or None,
        "done": done,
        "version without it": left.digest[:12] if left else None,
        "train again": " && ".join(again) if retrain else None,
    }
    cartridges = [
        (entry.corpus, entry.version, ", ".join(entry.aliases), entry.status, entry.digest[:12])
        for entry in found.cartridges
    ]
    value = found.as_json() | {
        "done": "erased" if yes and erase else "retired" if yes else None,
        "version_without": left.digest if left else None,
        "retrain": again if retrain else None,
    }
    tables = [facts(f"Made of corpus {name}" if document is None else f"Made of {document}", rows)]
    if cartridges:
        tables.append(listing(("corpus", "version", "aliases", "status then", "digest"), cartridges))
    show(value, as_json, *tables)


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
