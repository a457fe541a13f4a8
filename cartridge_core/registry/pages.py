"""Where a browser finds things in MLflow; an embedded MLflow has no pages."""

from __future__ import annotations

from urllib.parse import quote

from cartridge_core.registry.client import registry_client
from cartridge_core.registry.names import experiment_name
from cartridge_core.settings import Settings, redact_url

_OUR_KIND = "workflowType=machine_learning"
"""Without it MLflow opens its pages about traces, which have nothing of ours."""


def version_page(settings: Settings, name: str, version: int) -> str | None:
    """Page of a model version.

    Args:
        settings: Name the server.
        name: Registered model.
        version: Its version.
    """
    server = _server(settings)
    return f"{server}/#/models/{quote(name)}/versions/{version}" if server else None


def corpus_page(settings: Settings, corpus: str) -> str | None:
    """Page of a corpus's experiment: every training and evaluation about it.

    Raises:
        RegistryError: MLflow cannot be reached.
    """
    server = _server(settings)
    if server is None:
        return None
    with registry_client(settings) as client:
        experiment = client.get_experiment_by_name(experiment_name(settings.tenant, corpus))
    return f"{server}/#/experiments/{experiment.experiment_id}/runs?{_OUR_KIND}" if experiment else None


def _server(settings: Settings) -> str | None:
    if not settings.mlflow_tracking_uri.startswith("http"):
        return None
    return redact_url(settings.mlflow_public_url or settings.mlflow_tracking_uri).rstrip("/")
