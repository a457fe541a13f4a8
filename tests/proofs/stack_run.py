"""A native stack at work: all services started in order, a small corpus, its Cartridge trained by the deployment."""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import httpx
from rich.console import Console

from cartridge_core.reference.samples import Sample, write_sample
from tests.native_process import StackError
from tests.proofs.native_stack import NativeStack

STUDY = """num_conversations = 384
conversations_per_chunk = 64
max_tokens_a = 48
max_tokens_b = 96
[chunk]
min_tokens = 128
max_tokens = 256
"""


def write_documents(sample: Sample, folder: Path) -> Path:
    """Write a sample's documents and questions and a study's configuration into a folder, and return it."""
    write_sample(sample, folder)
    (folder / "study.toml").write_text(STUDY, encoding="utf-8")
    return folder


def start_all(stack: NativeStack, say: Console, but: Sequence[str] = ()) -> dict[str, float]:
    """Start every service in the order of its dependencies; jobs run where their dependents wait for them.

    Args:
        stack: What is started.
        say: Told how long each took.
        but: What is left out.

    Returns:
        Seconds, by service.
    """
    seconds: dict[str, float] = {}

    def step(name: str, work: Callable[[], object]) -> None:
        if name in but:
            return
        started = time.monotonic()
        work()
        seconds[name] = round(time.monotonic() - started, 1)
        say.print(f"{name:<20}{seconds[name]:>6.1f} s", highlight=False)

    stack.check_environments()
    if "postgres" not in stack.running:
        step("postgres", stack.start_postgres)
    if "s3" not in stack.running:
        step("s3", stack.start_s3)
    step("bucket", lambda: stack.job("bucket"))
    step("migrate", lambda: stack.job("migrate"))
    step("mlflow", lambda: stack.start("mlflow"))
    step("prefect", lambda: stack.start("prefect"))
    step("deploy", lambda: stack.job("deploy"))
    for worker in ("worker-cpu", stack.trainer):
        step(worker, lambda worker=worker: stack.start(worker))
    if "vllm" in stack.services:
        step("vllm", stack.start_vllm)
    step(stack.gateway, lambda: stack.start(stack.gateway))
    return seconds


def run_deployment(stack: NativeStack, corpus: str, seconds: float) -> str:
    """`prefect deployment run train-cartridge ...` where `docker compose exec worker-cpu` would run it; the run's id.

    Args:
        stack: Where; its documents are those of `write_documents`.
        corpus: Name that the corpus gets.
        seconds: How long it may take.

    Raises:
        StackError: The run did not complete in time.
    """
    parameters = {
        "corpus": corpus,
        "paths": json.dumps([str(stack.host_path("worker-cpu", "/documents/documents"))]),
        "questions": str(stack.host_path("worker-cpu", "/documents/questions.jsonl")),
        "study_config": str(stack.host_path("worker-cpu", "/documents/study.toml")),
        "num_tokens": "32",
        "steps": "150",
        "min_share_of_icl": "0.5",
    }
    words = [word for name, value in parameters.items() for word in ("-p", f"{name}={value}")]
    stack.run_in("worker-cpu", "prefect", "deployment", "run", "train-cartridge", *words)
    api = f"{stack.url('prefect')}/api"
    wanted = {"flows": {"name": {"any_": ["train-cartridge"]}}}
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for run in httpx.post(f"{api}/flow_runs/filter", json=wanted, timeout=30).json():
            if run["state_type"] == "COMPLETED":
                return str(run["id"])
            if run["state_type"] in ("FAILED", "CRASHED", "CANCELLED"):
                logs = httpx.post(f"{api}/logs/filter", json={"limit": 200}, timeout=30).json()
                said = "\n".join(line["message"] for line in logs if line["level"] >= 30)
                raise StackError(f"The run ended as {run['state_type']}: {run['state']['message']}\n{said}")
        time.sleep(2)
    raise StackError(f"The run did not end within {seconds:.0f} s.\n{stack.running['worker-cpu'].tail()}")


def application_key(stack: NativeStack) -> str:
    """A new key with which an application asks the gateway."""
    said = stack.run_in(stack.gateway, "cartridge", "key", "create", "application", "--json")
    return str(json.loads(said)["token"])
