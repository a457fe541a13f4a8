"""Aliases and tags of versions in MLflow. An alias here is a projection; the catalog's is the truth."""

from collections.abc import Mapping

from cartridge_core.registry.client import NOT_THERE, registry_client
from cartridge_core.registry.names import corpus_prefix
from cartridge_core.settings import Settings


def alias_targets(settings: Settings, corpus: str) -> dict[tuple[str, str], int]:
    """What MLflow's aliases of a corpus point at.

    Returns:
        Version by (registered model, alias), over all base models of the corpus.

    Raises:
        RegistryError: MLflow cannot be reached.
    """
    prefix = corpus_prefix(settings.tenant, corpus)
    targets = {}
    token: str | None = None
    with registry_client(settings) as client:
        while True:
            page = client.search_registered_models(f"name LIKE '{prefix}%'", page_token=token)
            for model in page:
                for alias, version in model.aliases.items():
                    targets[model.name, alias] = int(version)
            token = page.token
            if not token:
                return targets


def set_alias(settings: Settings, name: str, alias: str, version: int) -> None:
    """Point an alias of a registered model at a version.

    Raises:
        RegistryError: There is no such version, or MLflow cannot be reached.
    """
    with registry_client(settings) as client:
        client.set_registered_model_alias(name, alias, str(version))


def clear_alias(settings: Settings, name: str, alias: str) -> None:
    """Take an alias away from a registered model; one that is not there is no error.

    Raises:
        RegistryError: MLflow cannot be reached.
    """
    from mlflow.exceptions import MlflowException

    with registry_client(settings) as client:
        try:
            client.delete_registered_model_alias(name, alias)
        except MlflowException as error:
            if error.error_code != NOT_THERE:
                raise


def tag_version(settings: Settings, name: str, version: int, tags: Mapping[str, str]) -> None:
    """Write tags on a version.

    Raises:
        RegistryError: There is no such version, or MLflow cannot be reached.
    """
    with registry_client(settings) as client:
        for key, value in tags.items():
            client.set_model_version_tag(name, str(version), key, value)
