"""Flow `ingest-corpus`: documents become a corpus version."""

from pathlib import Path
from typing import Any

from prefect import flow

from cartridge_core.settings import Settings
from cartridge_core.stages.ingest import ingest
from flows.reporting import progress_artifact


@flow(name="ingest-corpus", flow_run_name="ingest {corpus}", validate_parameters=True)
def ingest_corpus(corpus: str, paths: list[Path]) -> dict[str, Any]:
    """Read text and Markdown into a corpus version.

    Args:
        corpus: Name of the corpus.
        paths: Files and folders, as this worker sees them.

    Returns:
        The version's digest and what was read and skipped.
    """
    with progress_artifact("ingest-corpus") as progress:
        product = ingest(Settings(), corpus, paths, progress).product
    return product.facts | {"cached": product.cached}
