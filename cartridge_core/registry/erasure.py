"""Taking a Cartridge out of MLflow, files and all."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from cartridge_core.registry.client import NOT_THERE, registry_client
from cartridge_core.registry.version import DIGEST_TAG
from cartridge_core.settings import Settings

if TYPE_CHECKING:
    from mlflow import MlflowClient

ResultT = TypeVar("ResultT")


def erase_version(settings: Settings, name: str, version: int, model_id: str, digest: str) -> tuple[str, ...]:
    """Remove a version, its logged model, the runs about it, and the files of all of them.

    MLflow's own deletions keep the files until somebody collects garbage; an erasure must not. What is gone already is
    no error, so that an interrupted erasure can be repeated.

    Args:
        settings: Names MLflow.
        name: Registered model.
        version: Its version.
        model_id: Logged model behind it.
        digest: The Cartridge's digest, which its runs carry.

    Returns:
        Addresses of the folders that were removed.

    Raises:
        RegistryError: MLflow cannot be reached or refuses.
    """
    removed = []
    with registry_client(settings) as client:
        model = _unless_gone(lambda: client.get_logged_model(model_id))
        if model is not None:
            for run in client.search_runs([model.experiment_id], f"tags.{DIGEST_TAG} = '{digest}'"):
                _remove_files(client, settings, run.info.artifact_uri)
                removed.append(run.info.artifact_uri)
                client.delete_run(run.info.run_id)
            _remove_files(client, settings, model.artifact_location)
            removed.append(model.artifact_location)
        _unless_gone(lambda: client.delete_model_version(name, str(version)))
        if model is not None:
            client.delete_logged_model(model_id)
    return tuple(removed)


def _remove_files(client: MlflowClient, settings: Settings, location: str) -> None:
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    repository = get_artifact_repository(location, tracking_uri=settings.mlflow_tracking_uri)
    if repository.list_artifacts():
        repository.delete_artifacts()


def _unless_gone(action: Callable[[], ResultT]) -> ResultT | None:
    from mlflow.exceptions import MlflowException

    try:
        return action()
    except MlflowException as error:
        if error.error_code != NOT_THERE:
            raise
        return None
