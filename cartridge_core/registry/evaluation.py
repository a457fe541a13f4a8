"""The grading of a Cartridge as MLflow shows it: a run of its own, metrics of the model, a table in words."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from cartridge_core.registry.lineage import corpus_input, log_inputs, mlflow_digest
from cartridge_core.report import REPORT_FILE

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from cartridge_core.registry.version import VersionContent

REPORT_TAG = "report_digest"
"""Tag that finds an evaluation run again."""


def log_evaluation(
    client: MlflowClient, experiment: str, name: str, version: int, model_id: str, content: VersionContent
) -> None:
    """Write a report down as a run with the model's metrics, unless that was done before.

    Replies stay out of MLflow: they hold text of the corpus and would outlive its deletion.

    Args:
        client: MLflow.
        experiment: Id of the experiment.
        name: Registered model.
        version: Its version.
        model_id: Logged model behind it.
        content: Holds the report and its plots.
    """
    from mlflow.entities import LoggedModelInput, Metric

    report = content.report
    if report is None:
        return
    mine = f"tags.{REPORT_TAG} = '{report.digest}' and tags.model_id = '{model_id}' and attributes.status = 'FINISHED'"
    if client.search_runs([experiment], mine, max_results=1):
        return
    digest = content.manifest.digest
    tags = {"cartridge_digest": digest, REPORT_TAG: report.digest, "model_id": model_id, "stage": "evaluate"}
    run_id = client.create_run(
        experiment, run_name=f"evaluate {content.corpus}", tags={**tags, **content.tags}
    ).info.run_id
    status = "FAILED"
    try:
        corpus = corpus_input(content.corpus, content.corpus_digest, content.corpus_uri, "evaluation")
        log_inputs(client, run_id, [corpus], [LoggedModelInput(model_id)])
        moment = int(time.time() * 1000)
        client.log_batch(
            run_id,
            metrics=[
                Metric(
                    key,
                    float(value),
                    moment,
                    0,
                    model_id=model_id,
                    dataset_name=content.corpus,
                    dataset_digest=mlflow_digest(content.corpus_digest),
                    run_id=run_id,
                )
                for key, value in report.figures().items()
            ],
        )
        client.log_param(run_id, "benchmark", report.benchmark)
        client.log_param(run_id, "questions_digest", report.questions_digest)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, REPORT_FILE)
            path.write_text(report.to_json(), encoding="utf-8")
            client.log_artifact(run_id, str(path))
        for plot in content.evaluation_plots:
            client.log_artifact(run_id, str(plot), "plots")
        client.update_model_version(name, str(version), description=report.markdown())
        if (over_icl := _share_of_icl(content)) is not None:
            client.set_model_version_tag(name, str(version), "acc_vs_icl", f"{over_icl:.3f}")
        status = "FINISHED"
    finally:
        client.set_terminated(run_id, status)


def _share_of_icl(content: VersionContent) -> float | None:
    comparison = content.report.comparison("icl") if content.report else None
    return comparison.ratio if comparison else None
