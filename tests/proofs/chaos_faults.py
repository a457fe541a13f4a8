"""What goes wrong: each fault strikes once and is over some seconds later."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.proofs.chaos_services import Stack, up

AWAY_SECONDS = 5.0
"""For which something is away or broken."""


@dataclass(frozen=True)
class Strike:
    """A fault about to happen to a run."""

    stack: Stack
    """Where it happens."""
    run_id: str
    """Of the chain's flow run."""
    step_ids: Callable[[], list[str]]
    """Flow runs that the chain has handed off."""


def _kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue


def kill_flow(strike: Strike) -> None:
    """The chain's own process."""
    _kill(strike.stack.flow_processes(lambda run_id: run_id == strike.run_id))


def kill_trainer(strike: Strike) -> None:
    """The process of the step that was handed to the gpu pool, as soon as there is one."""
    _kill(_step_processes(strike))


def kill_gpu_worker(strike: Strike) -> None:
    """The machine of the gpu pool, as soon as it took the chain's step, which is pending while its process starts."""
    if _step_processes(strike):
        worker = strike.stack.workers[1]
        worker.kill()
        time.sleep(AWAY_SECONDS)
        worker.start()


def _step_processes(strike: Strike) -> list[psutil.Process]:
    """Those of the chain's steps on the gpu pool, once there are some; none where no step was handed off in time."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if processes := strike.stack.flow_processes(frozenset(strike.step_ids()).__contains__):
            return processes
        time.sleep(0.2)
    return []


def kill_worker(strike: Strike) -> None:
    """The machine of the cpu pool: its worker and every flow on it."""
    worker = strike.stack.workers[0]
    worker.kill()
    _kill(strike.stack.flow_processes())
    time.sleep(AWAY_SECONDS)
    worker.start()


def kill_server(strike: Strike) -> None:
    """Prefect's server."""
    strike.stack.server.kill()
    time.sleep(AWAY_SECONDS)
    up(strike.stack.server)


def kill_mlflow(strike: Strike) -> None:
    """MLflow's server."""
    strike.stack.mlflow.kill()
    time.sleep(AWAY_SECONDS)
    up(strike.stack.mlflow)


def restart_postgres(strike: Strike) -> None:
    """The database of catalog and MLflow: killed at once, up again after a while."""
    postmaster = psutil.Process(strike.stack.postgres.get_pid())
    postmaster.kill()
    postmaster.wait(30)
    time.sleep(AWAY_SECONDS)
    for attempt in range(10):
        try:
            strike.stack.postgres.ensure_postgres_running()
            return
        except Exception:  # its errors share no class; the last one is told
            if attempt == 9:
                raise
            time.sleep(2)


def fail_s3(strike: Strike) -> None:
    """S3 answers 500."""
    strike.stack.break_s3("500", AWAY_SECONDS)


def hang_s3(strike: Strike) -> None:
    """S3 says nothing."""
    strike.stack.break_s3("hang", AWAY_SECONDS)


def cut_s3(strike: Strike) -> None:
    """S3's connections break in the middle of a body."""
    strike.stack.break_s3("cut", AWAY_SECONDS)


def fill_disk(strike: Strike) -> None:
    """No byte is left where the stages work."""
    filler = Path(strike.stack.home, ".filler")
    try:
        with filler.open("wb", buffering=0) as stream:
            while True:
                stream.write(bytes(1 << 16))
    except OSError:
        time.sleep(AWAY_SECONDS)
    finally:
        filler.unlink(missing_ok=True)


FAULTS: dict[str, Callable[[Strike], None]] = {
    "flow": kill_flow,
    "trainer": kill_trainer,
    "s3-500": fail_s3,
    "postgres": restart_postgres,
    "server": kill_server,
    "disk": fill_disk,
    "mlflow": kill_mlflow,
    "worker": kill_worker,
    "s3-hang": hang_s3,
    "s3-cut": cut_s3,
    "gpu-worker": kill_gpu_worker,
}
AT_STEPS = frozenset({"trainer", "gpu-worker"})
"""Faults that strike steps on the gpu pool, so that the chain must hand them off."""


def fault_of(seed: int, number: int, kinds: list[str]) -> tuple[str, float]:
    """Which fault strikes the run of a number, and how many seconds after it began."""
    rng = random.Random(f"{seed}/{number}")
    return kinds[number % len(kinds)], rng.uniform(0.0, 25.0)
