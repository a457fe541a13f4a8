"""Real workers: the chain hands its GPU steps to the gpu pool, and a cancelled training ends at once, nothing lost.

Its name keeps it out of `make test`, which has a bound on its time: `make worker-test` runs it.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.states import Cancelling

from flows.gpu_slot import LIMIT
from tests.flows.test_deployments import ROOT, prefect
from tests.native_process import NativeProcess
from tests.talkative import Workplace


@contextmanager
def worker(server: str, pool: str, folder: Path) -> Iterator[NativeProcess]:
    """A worker process of a pool, made if there is none."""
    prefect(server, "work-pool", "create", pool, "--type", "process", "--overwrite")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    environment |= {
        "PREFECT_API_URL": server,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
        "PREFECT_WORKER_QUERY_SECONDS": "1",
    }
    command = [str(Path(sys.executable).with_name("prefect")), "worker", "start", "--pool", pool]
    process = NativeProcess(f"worker-{pool}", command, environment, ROOT, folder / f"{pool}.log")
    process.start()
    try:
        yield process
    finally:
        process.stop(60)


@contextmanager
def workers(server: str, folder: Path) -> Iterator[None]:
    """A worker for each pool."""
    with worker(server, "cpu", folder), worker(server, "gpu", folder):
        yield


def wait_for(what: Callable[[], Any], seconds: float) -> Any:
    """What is true at last, or the failure that it is not."""
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.5)
    return found


@pytest.mark.slow
def test_gpu_steps_run_on_their_pool_and_a_cancelled_one_ends(
    prefect_server: str, workplace: Workplace, tmp_path: Path
) -> None:
    sizes = {"num_tokens": 24, "steps": 8, "study_config": str(workplace.study_file)}
    chain = sizes | {
        "corpus": "wards",
        "paths": [str(workplace.documents)],
        "questions": str(workplace.questions),
    }
    with get_client(sync_client=True) as client, workers(prefect_server, tmp_path):
        deployed = prefect(prefect_server, "deploy", "--all")
        assert deployed.returncode == 0, deployed.stderr
        train = client.read_deployment_by_name("train-cartridge/train-cartridge")
        run = client.create_flow_run_from_deployment(train.id, parameters=chain)
        ended = wait_for(lambda: _ended(client, run.id), 240)
        assert ended.state.type is StateType.COMPLETED, (tmp_path / "cpu.log").read_text(encoding="utf-8")
        pools = {
            other["name"].split()[0]: other["work_pool_name"]
            for other in httpx.post(f"{prefect_server}/flow_runs/filter", json={}).json()
            if other["work_pool_name"] and other["created"] >= run.created.isoformat()[:19]
        }
        assert pools["train"] == "cpu"
        assert pools["fit"] == pools["evaluate"] == "gpu"

        # A training that would take hours, cancelled as the button in the UI does it.
        config = tmp_path / "training.toml"
        config.write_text("checkpoint_every = 5\npatience = 1000000\n", encoding="utf-8")
        fit = client.read_deployment_by_name("fit-cartridge/fit-cartridge")
        long = {"corpus": "wards", "num_tokens": 24, "steps": 900_000, "config": str(config)}
        run = client.create_flow_run_from_deployment(fit.id, parameters=long)
        fits = workplace.settings.home / "stages" / "fit"
        wait_for(lambda: list(fits.glob("*/checkpoints/*")), 120)
        assert client.read_global_concurrency_limit_by_name(LIMIT).active_slots == 1
        (lock,) = (path for path in fits.glob(".*.lock") if not (fits / path.name[1:-5] / "stage.json").exists())
        cancel(client, run.id, lock)
        assert list(fits.glob("*/checkpoints/*"))

        # The same training again goes on from there, and says so where people look.
        run = client.create_flow_run_from_deployment(fit.id, parameters=long)
        mine = {"logs": {"flow_run_id": {"any_": [str(run.id)]}}, "limit": 200}
        wait_for(
            lambda: "Training goes on from step" in httpx.post(f"{prefect_server}/logs/filter", json=mine).text, 90
        )
        cancel(client, run.id, lock)


def cancel(client: Any, run_id: Any, lock: Path) -> None:
    """Cancel a run as the button in the UI does; within half a minute nobody trains and the slot is free."""
    client.set_flow_run_state(run_id, Cancelling())
    asked = time.monotonic()
    ended = wait_for(lambda: _ended(client, run_id), 30)
    assert ended.state.type is StateType.CANCELLED
    wait_for(
        lambda: _free(lock) and client.read_global_concurrency_limit_by_name(LIMIT).active_slots == 0,
        30 - (time.monotonic() - asked),
    )


def _ended(client: Any, run_id: Any) -> Any:
    run = client.read_flow_run(run_id)
    return run if run.state is not None and run.state.is_final() else None


def _free(lock: Path) -> bool:
    """Whether no process holds a lock."""
    return subprocess.run(["flock", "-n", str(lock), "true"], check=False).returncode == 0
