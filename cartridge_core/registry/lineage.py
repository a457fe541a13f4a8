"""What a Cartridge was made from, as MLflow shows it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput, LoggedModelInput

_LONGEST_DIGEST = 36
"""MLflow's column is no wider."""


def mlflow_digest(digest: str) -> str:
    """As much of a digest as MLflow keeps."""
    return digest[:_LONGEST_DIGEST]


def corpus_input(corpus: str, digest: str, uri: str | None, context: str) -> DatasetInput:
    """The corpus as a dataset of a run.

    Args:
        corpus: Name of the corpus.
        digest: Digest of its content.
        uri: Where its documents came from.
        context: `training` or `evaluation`.
    """
    return _input(corpus, digest, "corpus", {"corpus": corpus, "digest": digest, "uri": uri}, context)


def dataset_input(corpus: str, digest: str) -> DatasetInput:
    """The synthetic conversations as a dataset of a training run."""
    return _input(f"{corpus}-study", digest, "self-study", {"corpus": corpus, "digest": digest}, "training")


def _input(name: str, digest: str, kind: str, source: dict[str, str | None], context: str) -> DatasetInput:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    dataset = Dataset(name=name, digest=mlflow_digest(digest), source_type=kind, source=json.dumps(source))
    return DatasetInput(dataset=dataset, tags=[InputTag("mlflow.data.context", context)])


def log_inputs(
    client: MlflowClient, run_id: str, datasets: list[DatasetInput], models: list[LoggedModelInput] | None = None
) -> None:
    """Say what a run was made from.

    MLflow looks a dataset up and then inserts it: of two processes that name a new one at once, one is refused by the
    database. The row is there when it asks again, and asking again changes nothing that was written.
    """
    from mlflow.exceptions import MlflowException

    try:
        client.log_inputs(run_id, datasets=datasets, models=models)
    except MlflowException as error:
        if "unique" not in str(error).lower():
            raise
        client.log_inputs(run_id, datasets=datasets, models=models)
