"""What a chain runs on, as processes that can be killed: S3 behind a faulty proxy, PostgreSQL, MLflow, Prefect."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.native_process import NativeProcess, answers
from tests.ports import free_port
from tests.postgres import short_folder, start_postgres
from tests.s3 import s3_variables
from tests.s3_proxy import Faults, s3_proxy

ROOT = Path(__file__).resolve().parents[2]
BUCKET = "chaos"
RUN_VARIABLE = "PREFECT__FLOW_RUN_ID"
"""What Prefect tells a flow's process about its run."""


class Stack:
    """All services and the variables that point at them."""

    def __init__(self, folder: Path, home: Path, postgres: Any, s3: str, s3_faults: Faults) -> None:
        self.folder, self.home, self.postgres, self._s3_faults = folder, home, postgres, s3_faults
        logs = folder / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        server, mlflow = free_port(), free_port()
        database = postgres.get_uri().split("host=")[1]
        place = f"postgresql+psycopg://postgres:@/{{}}?host={database}"
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "CARTRIDGE_", "MLFLOW_", "AWS_"))}
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.variables = (
            kept
            | s3_variables(s3)
            | {
                "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
                "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)),
                "PWD": str(ROOT),
                "OMP_NUM_THREADS": "1",
                "CARTRIDGE_HOME": str(home),
                "CARTRIDGE_DEVICE": "cpu",
                "CARTRIDGE_THREADS": "1",
                "CARTRIDGE_CATALOG_URL": place.format("catalog"),
                "CARTRIDGE_ARTIFACT_ROOT": f"s3://{BUCKET}/cartridges",
                "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{mlflow}",
                "MLFLOW_S3_ENDPOINT_URL": s3,
                "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
                "MLFLOW_DISABLE_TELEMETRY": "true",
                "DO_NOT_TRACK": "1",
                "PREFECT_HOME": str(folder / "prefect"),
                "PREFECT_API_URL": f"http://127.0.0.1:{server}/api",
                "PREFECT_WORKER_QUERY_SECONDS": "2",
            }
        )
        tracking = ["--backend-store-uri", place.format("mlflow"), "--artifacts-destination", f"s3://{BUCKET}/mlflow"]
        address = ["--host", "127.0.0.1", "--port"]

        def process(name: str, *command: str, health: Callable[[], bool] = lambda: True) -> NativeProcess:
            return NativeProcess(name, words_of(*command), self.variables, ROOT, logs / f"{name}.log", health)

        self.server = process(
            "server",
            *("prefect", "server", "start", *address, str(server)),
            health=answers(f"http://127.0.0.1:{server}/api/health"),
        )
        self.mlflow = process(
            "mlflow",
            *("mlflow", "server", *tracking, "--workers", "1", *address, str(mlflow)),
            health=answers(f"http://127.0.0.1:{mlflow}/health"),
        )
        self.workers = [
            process(f"worker-{pool}", "prefect", "worker", "start", "--pool", pool) for pool in ("cpu", "gpu")
        ]

    def break_s3(self, fault: str, seconds: float) -> None:
        """Let S3 answer `500`, `hang` or `cut` bodies in the next seconds."""
        until = time.monotonic() + seconds
        self._s3_faults.of = lambda method, path, times: fault if time.monotonic() < until else None

    def call(self, *command: str) -> None:
        """Run a command of the environment."""
        done = subprocess.run(
            words_of(*command),
            env=self.variables,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=240,
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stdout}{done.stderr}")

    def flow_processes(self, wanted: Callable[[str], bool] = lambda run_id: True) -> list[psutil.Process]:
        """Processes of flow runs of this stack, children of such processes included."""
        found = []
        for process in psutil.process_iter():
            try:
                variables = process.environ()
            except (psutil.NoSuchProcess, psutil.AccessDenied, OSError):
                continue
            ours = variables.get("PREFECT_API_URL") == self.variables["PREFECT_API_URL"]
            if ours and wanted(variables.get(RUN_VARIABLE, "")) and RUN_VARIABLE in variables:
                found.append(process)
        return found


def words_of(command: str, *arguments: str) -> list[str]:
    """A command of this environment, by its path."""
    return [str(Path(sys.executable).with_name(command)), *arguments]


def up(process: NativeProcess, seconds: float = 180.0) -> NativeProcess:
    """Start a process and wait until it answers."""
    process.start()
    process.wait_healthy(seconds)
    return process


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[bool]:
    """A file system of that size at a folder while the block runs; False where this user may not mount one."""
    folder.mkdir(parents=True, exist_ok=True)
    options = ["-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    mounted = subprocess.run(["mount", *options], capture_output=True, check=False).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=False)


@contextmanager
def running_stack(folder: Path, home: Path) -> Iterator[Stack]:
    """The stack, up and with the deployments; afterwards nothing of it runs."""
    with ExitStack() as stack:
        s3 = f"http://127.0.0.1:{free_port()}"
        command = words_of("moto_server", "-p", s3.rpartition(":")[2])
        moto = NativeProcess("s3", command, os.environ, ROOT, folder / "s3.log", answers(f"{s3}/moto-api/"))
        stack.callback(moto.kill)
        up(moto)
        httpx.put(f"{s3}/{BUCKET}").raise_for_status()
        postgres = start_postgres(stack.enter_context(short_folder()))
        stack.callback(postgres.cleanup)
        for database in ("catalog", "mlflow"):
            postgres.psql(f"create database {database};")
        proxy, faults = stack.enter_context(s3_proxy(s3))
        faults.hang_s = 20.0
        services = Stack(folder, home, postgres, proxy, faults)
        for service in (*services.workers, services.mlflow, services.server):
            stack.callback(service.kill)
        stack.callback(lambda: [process.kill() for process in services.flow_processes()])
        services.call("cartridge", "catalog", "upgrade")
        up(services.server)
        up(services.mlflow)
        for pool in ("cpu", "gpu"):
            services.call("prefect", "work-pool", "create", pool, "--type", "process")
        services.call("prefect", "gcl", "create", "gpu", "--limit", "2")
        names = ("train-cartridge", "fit-cartridge", "evaluate-cartridge")
        services.call("prefect", "--no-prompt", "deploy", *(part for name in names for part in ("-n", name)))
        for worker in services.workers:
            worker.start()
        yield services
