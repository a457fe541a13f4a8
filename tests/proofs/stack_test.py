"""`make stack-test`: the stack of docker-compose.yml without containers, from documents to an answer, and once more.

Starts the services natively with the commands, variables and health checks that the compose file and the Dockerfiles
declare, runs the deployment through Prefect's command line as the README writes it, and looks for what it must have
left: the MLflow version, the object in S3, the catalog's row and alias, an answer from the gateway. Then everything but
the S3 stand-in is stopped and started again, and all of it must still be there. At last it is backed up, lost, and
restored as docs/deploying.md says, and must answer as before.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import boto3
import httpx
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from rich.console import Console
from sqlalchemy import text

from cartridge_core.catalog import CHAMPION, CatalogEntry, catalog_session, list_cartridges, manifest_of, resolve
from cartridge_core.errors import CartridgeError, CatalogError
from cartridge_core.proof import FOLDER, write_proof
from cartridge_core.reference.samples import Sample
from cartridge_core.reference.world import Scale
from cartridge_core.settings import Settings
from tests.compose_file import secret_names
from tests.native_process import StackError
from tests.proofs.native_stack import NativeStack, version_of
from tests.proofs.panels import EMPTY, EXPECTED, Seen, ask_panels, holds_within, panel_figures
from tests.proofs.stack_backup import back_up, lose_everything, restore
from tests.proofs.stack_run import application_key, run_deployment, start_all, write_documents

CORPUS = "stack"
SAMPLE = Sample("stack", Scale(8, 3, documents=1), 20)
ASKED = {
    **{
        name: {"at_least": 1.0}
        for name in (
            "run_completed",
            "mlflow_version",
            "mlflow_alias_agrees",
            "mlflow_answers_by_its_name",
            "s3_objects",
            "s3_manifest_agrees",
            "catalog_rows",
            "catalog_alias",
            "answered_by_cartridge",
            "metrics_scraped",
            "gateway_only_reads",
            "operator_pinned",
            "survived_mlflow_version",
            "survived_s3_object",
            "survived_catalog_alias",
            "survived_flow_run",
            "survived_answer",
            "restored_answer",
        )
    },
    "unauthorized_refused": {"at_least": 1.0},
    "share_right": {"at_least": 0.5},
    "secrets_in_logs": {"at_most": 0.0},
    "run_seconds": {"at_most": 900.0},
}


def stored(stack: NativeStack) -> tuple[dict[str, float], CatalogEntry]:
    """What MLflow, S3 and the catalog have of the Cartridge, each asked by its own client, and the catalog's entry."""
    settings = Settings(
        catalog_url=stack.environment(stack.gateway)["CARTRIDGE_CATALOG_URL"], mlflow_tracking_uri=stack.url("mlflow")
    )
    with catalog_session(settings, read_only=True) as session:
        rows = list_cartridges(session, settings.tenant, CORPUS)
        entry = resolve(session, settings.tenant, CORPUS)
        kept = manifest_of(session, entry)
    model = MlflowClient(tracking_uri=stack.url("mlflow")).get_model_version_by_alias(str(entry.model_name), CHAMPION)
    bucket, objects = stored_objects(stack, entry)
    manifest = next(key for key in objects if key.endswith("manifest.json"))
    body = bucket.get_object(Bucket=stack.variables["S3_BUCKET"], Key=manifest)["Body"].read()
    by_name = httpx.get(f"{stack.url('mlflow')}/", headers={"host": "mlflow:5000"}, timeout=30)
    foreign = httpx.get(f"{stack.url('mlflow')}/", headers={"host": "example.org"}, timeout=30)
    return {
        "mlflow_version": float(model.version),
        "mlflow_alias_agrees": float(model.tags["cartridge_digest"] == entry.digest),
        "mlflow_answers_by_its_name": float(by_name.status_code == 200 and foreign.status_code == 403),
        "s3_objects": float(len(objects)),
        "s3_manifest_agrees": float(json.loads(body) == json.loads(kept.model_dump_json())),
        "catalog_rows": float(len(rows)),
        "catalog_alias": float(CHAMPION in entry.aliases),
    }, entry


def stored_objects(stack: NativeStack, entry: CatalogEntry) -> tuple[Any, list[str]]:
    """A client of the bucket, and the keys of the Cartridge's files."""
    variables = stack.environment(stack.gateway)
    client = boto3.client(
        "s3",
        endpoint_url=variables["AWS_ENDPOINT_URL"],
        aws_access_key_id=variables["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=variables["AWS_SECRET_ACCESS_KEY"],
        region_name=variables["AWS_DEFAULT_REGION"],
    )
    found = client.list_objects_v2(Bucket=stack.variables["S3_BUCKET"], Prefix=f"artifacts/{entry.artifact_key}/")
    return client, [content["Key"] for content in found.get("Contents", ())]


def answers(stack: NativeStack, entry: CatalogEntry, key: str, questions: Path) -> dict[str, float]:
    """Ask the gateway every question as an application would."""
    asked = [json.loads(line) for line in questions.read_text(encoding="utf-8").splitlines()]
    right = served = 0
    with httpx.Client(base_url=stack.url("gateway"), timeout=60) as client:
        refused = client.post("/v1/chat/completions", json={"model": CORPUS, "messages": []}).status_code == 401
        for question in asked:
            body = {
                "model": CORPUS,
                "messages": [{"role": "user", "content": question["question"]}],
                "temperature": 0,
                "max_tokens": 32,
            }
            reply = client.post("/v1/chat/completions", json=body, headers={"authorization": f"Bearer {key}"})
            content = reply.raise_for_status().json()
            served += content["cartridge"]["served"] == "cartridge" and content["cartridge"]["digest"] == entry.digest
            right += question["answer"] in content["choices"][0]["message"]["content"]
    return {
        "unauthorized_refused": float(refused),
        "answered_by_cartridge": served / len(asked),
        "share_right": right / len(asked),
    }


def watch(stack: NativeStack) -> float | None:
    """Start Prometheus where it is installed; `time.time()` from which on it has the gateway's numbers."""
    binary = shutil.which("prometheus")
    if binary is None:
        return None
    since = time.time()
    stack.start_prometheus(binary)
    if not holds_within(stack.url("prometheus"), 'up{job="gateway"} == 1', 60):
        raise StackError(f"Prometheus does not reach the gateway.\n{stack.running['prometheus'].tail()}")
    return since


def catalog_users(stack: NativeStack) -> dict[str, float]:
    """What the gateway's own user may not do in the catalog, and what an operator may through the gateway."""
    settings = Settings(catalog_url=stack.environment(stack.gateway)["CARTRIDGE_CATALOG_URL"])
    refusal = ""
    try:
        with catalog_session(settings) as session:
            session.execute(text("UPDATE aliases SET cartridge_id = cartridge_id"))
    except CatalogError as error:
        refusal = error.problem
    key = stack.host_path("prometheus", "/keys/prometheus").read_text(encoding="utf-8")
    reply = httpx.post(
        f"{stack.url('gateway')}/admin/cartridges/pin",
        json={"model": CORPUS},
        headers={"authorization": f"Bearer {key}"},
        timeout=60,
    )
    return {
        "gateway_only_reads": float("permission denied" in refusal),
        "operator_pinned": float(reply.status_code == 200 and reply.json()["pinned"]),
    }


def watched(
    stack: NativeStack, since: float | None, ask: Callable[[], object]
) -> tuple[dict[str, float], dict[str, Seen]]:
    """Whether the gateway's numbers are read, with Prometheus's key where it is not installed, and the panels.

    Args:
        stack: Has answered.
        since: What `watch` said before the first answers.
        ask: Asks again: rates are seen between two answers.

    Returns:
        Figures, and what each panel of the dashboard shows.
    """
    if since is None:
        key = stack.host_path("prometheus", "/keys/prometheus").read_text(encoding="utf-8")
        reply = httpx.get(f"{stack.url('gateway')}/metrics", headers={"authorization": f"Bearer {key}"})
        return {"metrics_scraped": float("cartridge_requests_total" in reply.text)}, {}
    prometheus = stack.url("prometheus")
    scraped = holds_within(prometheus, "sum(cartridge_requests_total) > 0", 60)
    ask()
    deadline = time.monotonic() + 60
    seen = ask_panels(prometheus, since)
    while panel_figures(seen)["panels_unlike_expected"] and time.monotonic() < deadline:
        time.sleep(2)
        seen = ask_panels(prometheus, since)
    return {"metrics_scraped": float(scraped)} | panel_figures(seen), seen


def survived(stack: NativeStack, before: Mapping[str, float], entry: CatalogEntry, run: str) -> dict[str, float]:
    """What is still there after the restart, apart from the answers."""
    now, again = stored(stack)
    state = httpx.get(f"{stack.url('prefect')}/api/flow_runs/{run}", timeout=30).json()["state_type"]
    return {
        "survived_mlflow_version": float(now["mlflow_version"] == before["mlflow_version"]),
        "survived_s3_object": float(now["s3_objects"] == before["s3_objects"]),
        "survived_catalog_alias": float(again.digest == entry.digest and CHAMPION in again.aliases),
        "survived_flow_run": float(state == "COMPLETED"),
    }


def secrets_in_logs(stack: NativeStack) -> int:
    """Number of the stack's secrets that stand in some service's log."""
    logs = "".join(path.read_text(encoding="utf-8", errors="replace") for path in (stack.state / "logs").iterdir())
    return sum(stack.variables[name] in logs for name in secret_names())


def main() -> int:
    """Run it; 1 where something asked for is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--state", type=Path, help="empty folder for volumes and logs, kept afterwards")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the report goes")
    parser.add_argument("--profile", choices=("cpu", "gpu"), default="cpu", help="gpu: the gateway in front of vLLM")
    options = parser.parse_args()
    say, began = Console(), time.time()
    state = options.state or Path(tempfile.mkdtemp(prefix="stack-"))
    documents = write_documents(SAMPLE, state / "documents")
    stack = NativeStack(state, documents, options.profile)
    figures: dict[str, float] = {}
    seconds: dict[str, float] = {}
    panels: dict[str, Seen] = {}
    problem = ""
    try:
        seconds = start_all(stack, say)
        key = application_key(stack)
        started = time.monotonic()
        run = run_deployment(stack, CORPUS, seconds=900)
        figures |= {"run_completed": 1.0, "run_seconds": time.monotonic() - started}
        say.print(f"{'train-cartridge':<20}{figures['run_seconds']:>6.1f} s", highlight=False)
        found, entry = stored(stack)
        since = watch(stack)
        figures |= found | answers(stack, entry, key, documents / "questions.jsonl")
        shown, panels = watched(stack, since, lambda: answers(stack, entry, key, documents / "questions.jsonl"))
        figures |= shown
        figures |= catalog_users(stack)
        stack.stop(keep=["s3"])
        say.print("stopped; once more")
        restarted = start_all(stack, say)
        seconds |= {f"again_{name}": value for name, value in restarted.items()}
        figures |= survived(stack, found, entry, run)
        again = answers(stack, entry, key, documents / "questions.jsonl")
        figures["survived_answer"] = float(again["share_right"] == figures["share_right"])
        back_up(stack, state / "backup")
        lose_everything(stack)
        say.print("everything lost; restored")
        restore(stack, state / "backup")
        start_all(stack, say, but=("prefect", "deploy", "worker-cpu", stack.trainer))
        found_again, _ = stored(stack)
        again = answers(stack, entry, key, documents / "questions.jsonl")
        figures["restored_answer"] = float(again["share_right"] == figures["share_right"] and found_again == found)
        figures["secrets_in_logs"] = float(secrets_in_logs(stack))
    except (StackError, CartridgeError, MlflowException, httpx.HTTPError) as error:
        problem = str(error)
        say.print(problem, style="red", markup=False)
    finally:
        with suppress(KeyboardInterrupt):
            stack.stop()
    extra = {
        "seconds_by_service": seconds,
        "python": sys.version.split()[0],
        "s3": f"moto {version_of(sys.executable, '-c', 'import moto; print(moto.__version__)')}",
        "prometheus": version_of("prometheus", "--version") if shutil.which("prometheus") else "not installed",
        "points_by_panel": {title: one.points for title, one in panels.items()},
        "panels_refused": [problem for one in panels.values() for problem in one.refused],
        "panels_that_stay_empty": EMPTY,
        "problem": problem,
    }
    asked = ASKED | (EXPECTED if shutil.which("prometheus") and options.profile == "cpu" else {})
    target = "stack-test" if options.profile == "cpu" else f"stack-test-{options.profile}"
    proof = write_proof(target, f"make {target}", figures, asked, began, extra=extra, folder=options.folder)
    if proof.ok and options.state is None:
        shutil.rmtree(state, ignore_errors=True)
    else:
        say.print(f"Logs are in {state}/logs", highlight=False)
    return 0 if proof.ok else 1


if __name__ == "__main__":
    sys.exit(main())
