"""A registered Cartridge in another software's format, and such files as registered Cartridges."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cartridge_core.catalog import CHAMPION, CatalogEntry
from cartridge_core.errors import PublishingError
from cartridge_core.publishing.exchange import check_new_folder, export_cartridge, import_cartridge
from cartridge_core.settings import Settings
from cartridge_core.stages.ingest import find_corpus
from cartridge_core.stages.model import model_name

if TYPE_CHECKING:
    from cartridge_core.cartridge import Cartridge
    from cartridge_core.exchange import ForeignPrefix

Format = Literal["cartridge", "peft", "reference"]
"""Its own files, a PEFT CARTRIDGE adapter, or a checkpoint of the reference implementation (import only)."""


def export(
    settings: Settings,
    corpus: str,
    target: Path,
    reference: str = CHAMPION,
    format: Format = "cartridge",
    quantize: str | None = None,
) -> Path:
    """Write a registered Cartridge to files.

    Args:
        settings: Names the stores and the tenant.
        corpus: Name of the corpus.
        target: A new or empty folder, or for its own format a file that ends in `.tar`.
        reference: A version, an alias or the start of a digest.
        format: What to write.
        quantize: Storage to quantise it to, a key of `manifest.STORAGE`; of its own format only.

    Raises:
        NotFoundError: There is no such corpus or Cartridge.
        PublishingError: It was deleted, the target is taken, or the format does not go with what is asked.
        StorageError, ArtifactError: The files are gone or damaged, or the format cannot hold it.
    """
    if format == "cartridge":
        return export_cartridge(settings, corpus, target, reference, quantize)
    if format != "peft":
        raise PublishingError(f"Nothing is exported in format {format!r}.", "Choose cartridge or peft.")
    if quantize is not None:
        raise PublishingError(
            f"A PEFT adapter cannot hold {quantize}.", "Leave one of `--format` and `--quantize` out."
        )
    if target.suffix == ".tar":
        raise PublishingError(f"A PEFT adapter is a folder, not {target}.", "Name a new folder.")
    check_new_folder(target)
    from cartridge_core.cartridge import Cartridge
    from cartridge_core.exchange import write_adapter

    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as folder:
        own, adapter = Path(folder, "own"), Path(folder, "adapter")
        cartridge = Cartridge.load(export_cartridge(settings, corpus, own, reference))
        adapter.mkdir()
        write_adapter(cartridge, adapter)
        adapter.replace(target)
    return target


def import_foreign(
    settings: Settings,
    source: Path,
    corpus: str,
    format: Format,
    model: str | None = None,
    version: str = "",
    restore: bool = False,
    actor: str = "",
) -> CatalogEntry:
    """Register a Cartridge from another software's files.

    Such files name neither the corpus nor the tokenizer and hardly the base model, so these are taken from the corpus
    of that name, whose documents were added here, and from the base model's own files.

    Args:
        settings: Names the stores, the tenant and the default base model.
        source: A PEFT adapter's folder, or a reference checkpoint.
        corpus: Name of the corpus that it stands in for.
        format: What the source is.
        model: Base model: hub id or folder. The settings' own where nobody says, if the source names it.
        version: Corpus version: the beginning of its digest; the newest where nobody says.
        restore: Take it although it was deleted here once.
        actor: Who asks, for the record.

    Raises:
        ArtifactError: The source is damaged, hostile, or of another format.
        BaseModelMismatchError: It belongs to another base model.
        PublishingError: The base model cannot be known, or the Cartridge was deleted.
        NotFoundError: The corpus's documents were not added.
    """
    from cartridge_core.exchange import read_adapter, read_checkpoint

    readers: dict[str, Callable[[Path], ForeignPrefix | Cartridge]] = {
        "peft": read_adapter,
        "reference": read_checkpoint,
    }
    cartridge = _fitted(settings, readers[format](source), source, corpus, model, version)
    with tempfile.TemporaryDirectory() as folder:
        return import_cartridge(settings, cartridge.save(Path(folder, "c")), corpus, restore=restore, actor=actor)


def _fitted(
    settings: Settings, found: ForeignPrefix | Cartridge, source: Path, corpus: str, model: str | None, version: str
) -> Cartridge:
    """What was read, as a Cartridge of a base model and a corpus."""
    from cartridge_core.cartridge import Cartridge
    from cartridge_core.models import load_tokenizer, read_layout
    from cartridge_core.rendering import template_digest

    if isinstance(found, Cartridge):
        if model is not None:
            found.check_base_model(read_layout(model).identity)
        return found
    if model is None and found.base_name is None:
        raise PublishingError(f"{source} does not say which base model it belongs to.", "Name it with `--model`.")
    digest = find_corpus(settings, corpus, version).digest
    name = model_name(settings, model)
    # A hub's branch or tag that the file names is fetched; a local folder has no revisions.
    revision = None if Path(name).is_dir() or name == "reference" else found.base_revision
    return found.cartridge(
        read_layout(name, revision),
        template_digest(load_tokenizer(name, revision)),
        corpus_digest=digest,
        tenant=settings.tenant,
    )
