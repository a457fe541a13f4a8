"""Flow `register-cartridge`: artifact store, MLflow and catalog learn about a Cartridge."""

from typing import Any

from prefect import flow
from prefect.runtime import flow_run

from cartridge_core.catalog import CatalogEntry
from cartridge_core.registry.pages import corpus_page, version_page
from cartridge_core.settings import Settings
from cartridge_core.stages.fit import find_cartridge
from cartridge_core.stages.grade import find_report
from cartridge_core.stages.ingest import find_corpus
from cartridge_core.stages.register import register
from flows.naming import run_name
from flows.parameters import Digest, Name
from flows.reporting import show_link, tell_result
from flows.retrying import with_retries


@flow(name="register-cartridge", flow_run_name=run_name("register"))
def register_cartridge(
    corpus: Name, cartridge: Digest = "", report: Digest = "", version: Digest = ""
) -> dict[str, Any]:
    """Register a graded Cartridge with its report. No alias moves.

    Args:
        corpus: Name of the corpus.
        cartridge: Beginning of the Cartridge's digest; empty for the newest.
        report: Beginning of the report's digest; empty for the newest.
        version: Beginning of the corpus version's digest; empty for the newest.

    Returns:
        The catalog's entry, and MLflow's pages by their text.
    """
    settings = Settings()
    source = find_corpus(settings, corpus, version)
    fitted = find_cartridge(settings, source, cartridge)
    graded = find_report(settings, fitted, report)
    tags = {"prefect.flow_run_id": str(flow_run.get_id()), "prefect.flow_run_name": str(flow_run.get_name())}

    def work() -> tuple[CatalogEntry, list[tuple[str, str, str, str]]]:
        entry = register(settings, source, fitted, graded, tags, actor="prefect")
        return entry, _links(settings, entry)

    entry, links = with_retries("register", work)
    for key, page, text, description in links:
        show_link(key, page, text, description)
    pages = {text: page for _, page, text, _ in links}
    return tell_result("register-cartridge", entry.model_dump(mode="json") | {"pages": pages})


def _links(settings: Settings, entry: CatalogEntry) -> list[tuple[str, str, str, str]]:
    """Key, address, text and description of each page that MLflow has; none where it is embedded."""
    found = [("mlflow-corpus", corpus_page(settings, entry.corpus), entry.corpus, "All about the corpus in MLflow")]
    if entry.model_name is not None and entry.version is not None:
        page, name = version_page(settings, entry.model_name, entry.version), f"{entry.model_name} v{entry.version}"
        found.insert(0, ("mlflow-version", page, name, "The Cartridge in MLflow"))
    return [(key, page, text, description) for key, page, text, description in found if page is not None]
