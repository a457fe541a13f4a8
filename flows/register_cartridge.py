"""Flow `register-cartridge`: artifact store, MLflow and catalog learn about a Cartridge."""

from typing import Any

from prefect import flow
from prefect.runtime import flow_run

from cartridge_core.settings import Settings
from cartridge_core.stages.fit import find_cartridge
from cartridge_core.stages.grade import find_report
from cartridge_core.stages.ingest import find_corpus
from cartridge_core.stages.register import register
from flows.retrying import with_retries


@flow(name="register-cartridge", flow_run_name="register {corpus}")
def register_cartridge(corpus: str, cartridge: str = "", report: str = "", version: str = "") -> dict[str, Any]:
    """Register a graded Cartridge with its report. No alias moves.

    Args:
        corpus: Name of the corpus.
        cartridge: Beginning of the Cartridge's digest; empty for the newest.
        report: Beginning of the report's digest; empty for the newest.
        version: Beginning of the corpus version's digest; empty for the newest.

    Returns:
        The catalog's entry.
    """
    settings = Settings()
    source = find_corpus(settings, corpus, version)
    fitted = find_cartridge(settings, source, cartridge)
    graded = find_report(settings, fitted, report)
    tags = {"prefect.flow_run_id": str(flow_run.get_id()), "prefect.flow_run_name": str(flow_run.get_name())}
    entry = with_retries("register", lambda: register(settings, source, fitted, graded, tags, actor="prefect"))
    return entry.model_dump(mode="json")
