"""A Cartridge as a version of an MLflow registered model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from cartridge_core.manifest import CartridgeManifest
from cartridge_core.registry.client import ALREADY_EXISTS, as_default, experiment_id, registry_client
from cartridge_core.registry.evaluation import log_evaluation
from cartridge_core.registry.lineage import corpus_input, dataset_input, log_inputs
from cartridge_core.registry.names import experiment_name, model_name
from cartridge_core.report import EvaluationReport
from cartridge_core.settings import Settings

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel
    from mlflow.entities.model_registry import ModelVersion

DIGEST_TAG = "cartridge_digest"
"""Tag that finds a Cartridge again."""

_MODEL_VERSIONS_TAG = "mlflow.modelVersions"


@dataclass(frozen=True)
class VersionContent:
    """What a version is made of."""

    corpus: str
    """Name of the corpus."""
    corpus_digest: str
    """Digest of its content."""
    manifest: CartridgeManifest
    """The Cartridge's manifest."""
    files: tuple[Path, ...]
    """The Cartridge's files, the manifest last: exactly these become the model."""
    corpus_uri: str | None = None
    """Where the documents came from."""
    report: EvaluationReport | None = None
    """How it was graded; a later one may be added by registering again."""
    training_plots: tuple[Path, ...] = ()
    """Pictures of the training, such as the loss curve."""
    evaluation_plots: tuple[Path, ...] = ()
    """Pictures of the grading, such as score against memory."""
    params: Mapping[str, object] = field(default_factory=dict)
    """Training parameters to show beside the manifest's."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """Tags of the run that made it, such as the flow run's id."""


@dataclass(frozen=True)
class RegisteredVersion:
    """A version in MLflow."""

    name: str
    """Registered model."""
    version: int
    """Version number."""
    model_id: str
    """Logged model that holds the files."""
    run_id: str
    """Run that logged it."""
    created: bool
    """False when the Cartridge had this version already."""


def register_version(settings: Settings, content: VersionContent) -> RegisteredVersion:
    """Make a Cartridge a version of its registered model, or find the version it has.

    The model is a plain LoggedModel with exactly the Cartridge's files. Registering the same Cartridge again returns
    the same version; a report that is new is added to it.

    Raises:
        RegistryError: MLflow cannot be reached or refuses.
    """
    name = model_name(settings.tenant, content.corpus, content.manifest.base_model.id)
    with registry_client(settings) as client:
        experiment = experiment_id(client, settings, experiment_name(settings.tenant, content.corpus))
        found = _versions(client, name, content.manifest.digest)
        created = not found
        if created:
            model = _logged_model(client, experiment, content)
            version = _create_version(client, name, model, content)
        else:
            version = found[0]
        model_id = str(version.source).removeprefix("models:/")
        registered = RegisteredVersion(name, int(version.version), model_id, version.run_id or "", created)
        if content.report is not None:
            log_evaluation(client, experiment, registered.name, registered.version, model_id, content)
        return registered


def _versions(client: MlflowClient, name: str, digest: str) -> list[ModelVersion]:
    """Versions of a Cartridge, the first one first."""
    found = client.search_model_versions(f"name = '{name}' and tags.{DIGEST_TAG} = '{digest}'")
    return sorted(found, key=lambda version: int(version.version))


def _create_version(client: MlflowClient, name: str, model: LoggedModel, content: VersionContent) -> ModelVersion:
    from mlflow.exceptions import MlflowException

    digest = content.manifest.digest
    try:
        client.create_registered_model(
            name, tags={"corpus": content.corpus, "base": content.manifest.base_model.id}, description=_purpose(content)
        )
    except MlflowException as error:
        if error.error_code != ALREADY_EXISTS:
            raise
    with as_default(client.tracking_uri):
        made = client.create_model_version(
            name,
            f"models:/{model.model_id}",
            run_id=model.source_run_id,
            model_id=model.model_id,
            tags={
                DIGEST_TAG: digest,
                "base": content.manifest.base_model.id,
                "corpus": content.corpus,
                "tokens": str(content.manifest.num_tokens),
                "mb": f"{content.manifest.kv_bytes / 1e6:.3g}",
            },
            description=_purpose(content),
        )
    # MLflow has no unique tags: if another process registered the same Cartridge meanwhile, the first version stays.
    first = _versions(client, name, digest)[0]
    if first.version != made.version:
        client.delete_model_version(name, str(made.version))
        return first
    # What links the model's page to its version; mlflow.register_model writes it too, but prints and uses global state.
    client.set_logged_model_tags(
        model.model_id, {_MODEL_VERSIONS_TAG: json.dumps([{"name": name, "version": made.version}])}
    )
    return made


def _logged_model(client: MlflowClient, experiment: str, content: VersionContent) -> LoggedModel:
    """The Cartridge's logged model with its files; one that an interrupted registration left complete is used."""
    digest = content.manifest.digest
    left = client.search_logged_models([experiment], filter_string=f"tags.{DIGEST_TAG} = '{digest}'")
    for model in left:
        if model.status == "READY":
            return model
    run = client.create_run(
        experiment, run_name=f"train {content.corpus}", tags={DIGEST_TAG: digest, "stage": "train", **content.tags}
    )
    run_id = run.info.run_id
    params = _params(content)
    status = "FAILED"
    try:
        inputs = [corpus_input(content.corpus, content.corpus_digest, content.corpus_uri, "training")]
        if content.manifest.dataset_digest is not None:
            inputs.append(dataset_input(content.corpus, content.manifest.dataset_digest))
        log_inputs(client, run_id, inputs)
        for key, value in params.items():
            client.log_param(run_id, key, value)
        for plot in content.training_plots:
            client.log_artifact(run_id, str(plot), "plots")
        model = client.create_logged_model(
            experiment,
            name=f"cartridge-{content.corpus}",
            source_run_id=run_id,
            tags={DIGEST_TAG: digest, "corpus": content.corpus},
            params=params,
            model_type="cartridge",
        )
        try:
            for path in content.files:
                client.log_model_artifact(model.model_id, str(path))
        except BaseException:
            client.finalize_logged_model(model.model_id, "FAILED")
            raise
        ready = client.finalize_logged_model(model.model_id, "READY")
        status = "FINISHED"
        return ready
    finally:
        client.set_terminated(run_id, status)


def _params(content: VersionContent) -> dict[str, str]:
    manifest = content.manifest
    shown = {
        "corpus": content.corpus,
        "corpus_digest": content.corpus_digest,
        "base_model": manifest.base_model.id,
        "base_revision": manifest.base_model.revision,
        "num_tokens": manifest.num_tokens,
        "num_frozen_tokens": manifest.num_frozen_tokens,
        "dtype": manifest.dtype,
        "seed": manifest.seed,
        "kv_bytes": manifest.kv_bytes,
        "storage_dtype": manifest.quantization.storage_dtype if manifest.quantization else None,
        "software_version": manifest.software_version,
    }
    return {key: str(value) for key, value in {**content.params, **shown}.items() if value is not None}


def _purpose(content: VersionContent) -> str:
    base = content.manifest.base_model
    return (
        f"Cartridges that stand in for the corpus {content.corpus!r} in front of {base.id} (revision {base.revision})."
    )
