"""What MLflow holds, for whoever compares it with the catalog."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cartridge_core.registry.client import NOT_THERE, registry_client
from cartridge_core.registry.version import DIGEST_TAG
from cartridge_core.settings import Settings

_PAGE = 1000


@dataclass(frozen=True)
class ListedVersion:
    """A version of one of the tenant's registered models."""

    name: str
    """Registered model."""
    version: int
    model_id: str
    """Logged model behind it."""
    corpus: str
    """Name of the corpus, as the model's name says it."""
    digest: str | None
    """The Cartridge's digest; None where nobody tagged the version, as one made by hand."""
    created_at: datetime


def list_versions(settings: Settings) -> list[ListedVersion]:
    """All versions of the tenant's registered models, by name and number.

    Raises:
        RegistryError: MLflow cannot be reached.
    """
    prefix = f"{settings.tenant}."
    found, token = [], None
    with registry_client(settings) as client:
        while True:
            page = client.search_model_versions(f"name LIKE '{prefix}%'", max_results=_PAGE, page_token=token)
            found += [
                ListedVersion(
                    name=version.name,
                    version=int(version.version),
                    model_id=str(version.source).removeprefix("models:/"),
                    corpus=version.name.split(".")[1],
                    digest=version.tags.get(DIGEST_TAG),
                    created_at=datetime.fromtimestamp(version.creation_timestamp / 1000, UTC),
                )
                for version in page
                # LIKE asks no case.
                if version.name.startswith(prefix) and version.name.count(".") > 1
            ]
            token = page.token
            if not token:
                return sorted(found, key=lambda version: (version.name, version.version))


def fetch_files(settings: Settings, model_id: str, folder: Path) -> bool:
    """Write the files of a logged model into a folder.

    Returns:
        Whether there was such a model with files.

    Raises:
        RegistryError: MLflow cannot be reached.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    with registry_client(settings) as client:
        try:
            model = client.get_logged_model(model_id)
        except MlflowException as error:
            if error.error_code != NOT_THERE:
                raise
            return False
        repository = get_artifact_repository(model.artifact_location, tracking_uri=settings.mlflow_tracking_uri)
        files = [file.path for file in repository.list_artifacts() if not file.is_dir]
        folder.mkdir(parents=True, exist_ok=True)
        for file in files:
            repository.download_artifacts(file, str(folder))
        return bool(files)


def drop_version(settings: Settings, name: str, version: int) -> None:
    """Remove a version and nothing else; one that is gone is no error.

    Raises:
        RegistryError: MLflow cannot be reached.
    """
    from mlflow.exceptions import MlflowException

    with registry_client(settings) as client:
        try:
            client.delete_model_version(name, str(version))
        except MlflowException as error:
            if error.error_code != NOT_THERE:
                raise
