"""Flow `ingest-corpus`: documents become a corpus version."""

from typing import Any

from prefect import flow

from cartridge_core.settings import Settings
from cartridge_core.stages.ingest import ingest
from flows.naming import run_name
from flows.parameters import Name, Paths
from flows.reporting import progress_artifact, tell_result
from flows.retrying import with_retries


@flow(name="ingest-corpus", flow_run_name=run_name("ingest"))
def ingest_corpus(corpus: Name, paths: Paths) -> dict[str, Any]:
    """Read text and Markdown into a corpus version.

    Args:
        corpus: Name of the corpus.
        paths: Files and folders, as the worker sees them.

    Returns:
        The version's digest and what was read and skipped.
    """
    with progress_artifact("ingest-corpus") as progress:
        product = with_retries("ingest", lambda: ingest(Settings(), corpus, paths, progress)).product
    return tell_result("ingest-corpus", product.facts | {"cached": product.cached})
