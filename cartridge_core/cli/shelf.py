"""`cartridge list` and `cartridge show`: what the catalog holds."""

from typing import Annotated, Any

import typer
from rich.console import RenderableType

from cartridge_core.catalog import (
    CHAMPION,
    CatalogEntry,
    alias_history,
    catalog_session,
    find_cartridge,
    list_cartridges,
    manifest_of,
)
from cartridge_core.cli.console import JsonOption, facts, listing, messages, show
from cartridge_core.cli.options import CorpusName
from cartridge_core.manifest import CartridgeManifest
from cartridge_core.settings import Settings


def list_(
    corpus: Annotated[str | None, typer.Argument(metavar="[CORPUS]", help="Name of the corpus. Default: all.")] = None,
    deleted: Annotated[bool, typer.Option("--deleted", help="Deleted ones too.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Most Cartridges.")] = 100,
    before: Annotated[int | None, typer.Option(help="Only those older than the one of this number.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List registered Cartridges, the newest first.

    Example: `cartridge list handbook`
    """
    settings = Settings()
    with catalog_session(settings, read_only=True) as session:
        entries = list_cartridges(session, settings.tenant, corpus, include_deleted=deleted, limit=limit, before=before)
    columns = ("corpus", "version", "aliases", "tokens", "base model", "score", "ICL", "status", "digest")
    rows = [
        (
            entry.corpus,
            entry.version,
            ", ".join(entry.aliases),
            entry.num_tokens,
            entry.base_model.id,
            _score(entry.score),
            _score(entry.icl_score),
            entry.status,
            entry.digest[:12],
        )
        for entry in entries
    ]
    show([entry_value(entry) for entry in entries], as_json, listing(columns, rows))
    if len(entries) == limit:
        messages().print(f"There may be more: --before {entries[-1].cartridge_id}", style="dim")


def show_(
    corpus: CorpusName,
    reference: Annotated[str, typer.Argument(help="Alias, version or start of a digest.")] = CHAMPION,
    as_json: JsonOption = False,
) -> None:
    """Show a registered Cartridge, and how the champion changed.

    Example: `cartridge show handbook champion`
    """
    settings = Settings()
    with catalog_session(settings, read_only=True) as session:
        entry = find_cartridge(session, settings.tenant, corpus, reference)
        history = alias_history(session, settings.tenant, corpus)
    moves = [
        {
            "at": change.created_at,
            "action": change.action,
            "cartridge_id": change.cartridge_id,
            "actor": change.actor,
            "reason": change.reason,
        }
        for change in history
    ]
    rows = [(str(m["at"])[:19], m["action"], m["cartridge_id"], m["actor"], m["reason"]) for m in moves]
    columns = ("champion moved at", "action", "cartridge", "by", "reason")
    tables = [listing(columns, rows)] if rows else []
    show_cartridge(settings, f"Cartridge of {corpus}", entry, as_json, *tables, champion_history=moves)


def entry_value(entry: CatalogEntry) -> dict[str, Any]:
    """A catalog entry as JSON values."""
    return entry.model_dump(mode="json")


def show_cartridge(
    settings: Settings, title: str, entry: CatalogEntry, as_json: bool, *tables: RenderableType, **more: object
) -> None:
    """Print all about one Cartridge, its manifest included.

    Args:
        settings: Names the catalog.
        title: Heading for people.
        entry: The Cartridge.
        as_json: For programs.
        *tables: What people see below it.
        **more: What programs get beside it.
    """
    with catalog_session(settings, read_only=True) as session:
        manifest = manifest_of(session, entry)
    value = entry_value(entry) | {"manifest": manifest.model_dump(mode="json")} | more
    show(value, as_json, facts(title, _facts(entry, manifest)), *tables)


def _facts(entry: CatalogEntry, manifest: CartridgeManifest) -> dict[str, Any]:
    return {
        "digest": entry.digest,
        "number": entry.cartridge_id,
        "status": entry.status,
        "aliases": ", ".join(entry.aliases) or None,
        "tokens": entry.num_tokens,
        "KV bytes": f"{entry.kv_bytes:,}",
        "stored as": _storage(manifest),
        "base model": f"{entry.base_model.id} ({entry.base_model.revision})",
        "corpus version": f"{entry.corpus_version} ({entry.corpus_digest[:12]})",
        "MLflow": f"{entry.model_name} v{entry.version}" if entry.model_name else None,
        "score": _score(entry.score),
        "ICL": _score(entry.icl_score),
        "questions": entry.num_questions,
        "files": entry.artifact_uri,
    }


def _storage(manifest: CartridgeManifest) -> str | None:
    quantization = manifest.quantization
    return f"{quantization.storage_dtype}, {manifest.stored_bytes:,} bytes" if quantization else None


def _score(score: float | None) -> str | None:
    return None if score is None else f"{score:.1%}"
