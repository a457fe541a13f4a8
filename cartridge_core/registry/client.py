"""A quiet MLflow client."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from boto3.exceptions import Boto3Error
from botocore.exceptions import BotoCoreError, ClientError
from sqlalchemy.exc import SQLAlchemyError

from cartridge_core.errors import RegistryError
from cartridge_core.registry.database import prepare_database
from cartridge_core.settings import Settings, redact_url

if TYPE_CHECKING:
    from mlflow import MlflowClient

# Set before mlflow is imported, which reads them then. Whoever wants another value sets it in the environment.
_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    # The default of 7 with doubled pauses keeps a user waiting four minutes for "the server is down".
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
}

_TRACKING_VARIABLE = "MLFLOW_TRACKING_URI"
_DEFAULT_LOCK = threading.Lock()

ALREADY_EXISTS = "RESOURCE_ALREADY_EXISTS"
NOT_THERE = "RESOURCE_DOES_NOT_EXIST"


@contextmanager
def registry_client(settings: Settings) -> Iterator[MlflowClient]:
    """MLflow at the tracking URI of the settings; its errors become ours.

    Raises:
        RegistryError: mlflow is not installed, cannot be reached, or refuses.
    """
    for variable, value in _QUIET.items():
        os.environ.setdefault(variable, value)
    try:
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException
    except ImportError as error:
        raise RegistryError("mlflow is not installed.", "Install cartridge-foundry[registry].") from error
    where = f"MLflow at {redact_url(settings.mlflow_tracking_uri)}"
    try:
        prepare_database(settings.mlflow_tracking_uri)
        yield MlflowClient(tracking_uri=settings.mlflow_tracking_uri)
    except MlflowException as error:
        raise RegistryError(
            f"{where} refused: {_first_line(error)}.", "Check MLFLOW_TRACKING_URI and that the server runs."
        ) from error
    # What its own database and file clients raise comes through as it is.
    except (OSError, SQLAlchemyError, BotoCoreError, ClientError, Boto3Error) as error:
        raise RegistryError(
            f"{where} failed: {_first_line(error)}.", "Check MLFLOW_TRACKING_URI and where it keeps its files."
        ) from error


@contextmanager
def as_default(uri: str) -> Iterator[None]:
    """Make a tracking URI MLflow's process-wide default for the block, and leave no trace of that.

    A database-backed registry looks up logged models through the default, whatever client asked it to; without this it
    would look into, and make, an `mlflow.db` in the working directory.
    """
    import mlflow

    with _DEFAULT_LOCK:
        variable = os.environ.get(_TRACKING_VARIABLE)
        before = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else None
        mlflow.set_tracking_uri(uri)
        try:
            yield
        finally:
            # MLflow writes its variable too, and would keep what it read from there as if somebody had set it.
            mlflow.set_tracking_uri(None if before == variable else before)
            if variable is not None:
                os.environ[_TRACKING_VARIABLE] = variable


def experiment_id(client: MlflowClient, settings: Settings, name: str) -> str:
    """The experiment of that name, made if there is none."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, artifact_location=_artifact_location(settings)))
        except MlflowException as error:
            if error.error_code != ALREADY_EXISTS:
                raise
        found = client.get_experiment_by_name(name)
    if found is None:
        raise RegistryError(f"MLflow neither has the experiment {name!r} nor lets it be made.", "Look at MLflow's log.")
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return str(found.experiment_id)


def _artifact_location(settings: Settings) -> str | None:
    """Where MLflow keeps files: a server decides for itself, a bare database has no place of its own."""
    if settings.mlflow_tracking_uri.startswith("http"):
        return None
    if settings.artifact_root.startswith("s3://"):
        return f"{settings.artifact_root.rstrip('/')}/mlflow"
    return settings.mlflow_artifacts.as_uri()


def _first_line(error: Exception) -> str:
    # MLflow's own messages name the server with its password.
    text = redact_url(str(error).strip() or type(error).__name__)
    return text.splitlines()[0].rstrip(".")
