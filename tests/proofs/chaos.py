"""`make chaos`: the whole chain, many times, with a fault at a random moment of each; then everything is there once.

    python -m tests.proofs.chaos --runs 8

Four runs at a time share one stack of real services: Prefect's server and workers, MLflow on PostgreSQL, S3 over HTTP.
A run that was counted at this commit is not repeated: called again, the command goes on with the others (`--fresh`
begins anew).
"""

import argparse
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from cartridge_core.proof import commit, write_proof
from tests.proofs.chaos_faults import FAULTS, fault_of
from tests.proofs.chaos_services import Stack, running_stack, small_disk

if TYPE_CHECKING:
    from tests.proofs.chaos_runs import Outcome

AT_A_TIME = 4
DISK_MEGABYTES = 256
MINUTES = 90


def main() -> int:
    """Carry out what is left to do, print the table, write the report; the exit code."""
    told = _parser().parse_args()
    started, folder = time.time(), told.folder.absolute()
    if told.fresh:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    rows = folder / "runs.jsonl"
    done = _done(rows, told.seed)
    todo = [number for number in range(told.runs) if number not in done]
    if todo:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            _carry_out(todo, told, folder, rows, started)
        except KeyboardInterrupt:
            print(f"Stopped; the services are gone, what was counted is kept in {rows}.", flush=True)
            os._exit(130)  # the runs' threads still wait for a server that will not come back
    done = _done(rows, told.seed)
    counted = [done[number] for number in range(told.runs) if number in done]
    exactly_once = sum(row["completed"] and not row["problems"] for row in counted)
    figures = {
        "runs": len(counted),
        "runs_exactly_once": exactly_once,
        "conversations_lost": sum(row["lost"] for row in counted),
        "conversations_repeated": sum(row["repeated"] for row in counted),
        "resumed_by_hand": sum(row["resumes"] for row in counted),
        "slowest_run_seconds": max((row["seconds"] for row in counted), default=0.0),
        "minutes": _minutes(counted),
    }
    asked = {
        "runs": {"at_least": told.runs},
        "runs_exactly_once": {"at_least": told.runs},
        "conversations_lost": {"at_most": 0},
        "conversations_repeated": {"at_most": 0},
        "minutes": {"at_most": MINUTES},
    }
    command = f"python -m tests.proofs.chaos --runs {told.runs} --seed {told.seed}"
    proof = write_proof("chaos", command, figures, asked, started, extra={"runs": counted})
    for row in counted:
        if row["problems"] or not row["completed"]:
            print(f"run {row['number']} ({row['fault']} after {row['delay']} s): {row['problems'] or 'not completed'}")
    return 0 if proof.ok else 1


def _carry_out(todo: list[int], told: argparse.Namespace, folder: Path, rows: Path, began: float) -> None:
    shutil.rmtree(folder / "prefect", ignore_errors=True)
    with small_disk(folder / "disk", DISK_MEGABYTES) as small:
        home = folder / "disk" / f"home-{int(time.time())}"
        home.mkdir(parents=True)
        kinds = [kind for kind in told.faults.split(",") if small or kind != "disk"]
        with running_stack(folder, home) as stack:
            os.environ.clear()
            os.environ.update(stack.variables)
            # Prefect reads its variables when it is imported.
            from tests.proofs.chaos_runs import carry_out

            written = threading.Lock()

            def one(number: int) -> None:
                if time.time() > began + told.minutes * 60:
                    return
                outcome = carry_out(stack, number, *fault_of(told.seed, number, kinds))
                with written, rows.open("a", encoding="utf-8") as stream:
                    at = {"seed": told.seed, "commit": commit(), "call": began, "after": round(time.time() - began)}
                    stream.write(json.dumps(asdict(outcome) | at) + "\n")
                _say(outcome)

            with reaping(stack):
                pool = ThreadPoolExecutor(AT_A_TIME)
                try:
                    list(pool.map(one, todo))
                finally:
                    pool.shutdown(wait=False, cancel_futures=True)


@contextmanager
def reaping(stack: Stack) -> Iterator[None]:
    """What the scheduled flow `reap-runs` does, from this process and more often."""
    from prefect.client.orchestration import get_client

    from flows.reap_runs import Reaper

    ended = threading.Event()

    def loop() -> None:
        while not ended.wait(5):
            try:
                with get_client(sync_client=True) as client:
                    Reaper(client, 10, silence_seconds=90, pending_seconds=60, crashed_within_hours=2).reap()
            except httpx.HTTPError:
                continue  # the server is away just now

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _say(outcome: "Outcome") -> None:
    verdict = "once" if outcome.completed and not outcome.problems else f"NOT ONCE {outcome.problems}"
    print(
        f"run {outcome.number:3d}  {outcome.fault:10s} after {outcome.delay:4.1f} s  {outcome.seconds:6.1f} s  "
        f"{outcome.resumes} resumes  {verdict}",
        flush=True,
    )


def _done(rows: Path, seed: int) -> dict[int, dict[str, Any]]:
    if not rows.exists():
        return {}
    told = [json.loads(line) for line in rows.read_text(encoding="utf-8").splitlines()]
    return {row["number"]: row for row in told if (row["seed"], row.get("commit")) == (seed, commit())}


def _minutes(counted: list[dict[str, Any]]) -> float:
    """How long all calls took together until their last counted run ended."""
    calls = {row["call"] for row in counted}
    return sum(max(row["after"] for row in counted if row["call"] == call) for call in calls) / 60


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=MINUTES, help="no run begins after so many")
    parser.add_argument("--faults", default=",".join(FAULTS), help="kinds, separated by commas")
    parser.add_argument("--folder", type=Path, default=Path("build/chaos"))
    parser.add_argument("--fresh", action="store_true", help="forget the runs that were counted before")
    return parser


if __name__ == "__main__":
    sys.exit(main())
