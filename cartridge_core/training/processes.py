"""A training run of several processes on this machine, started by `torchrun` and watched by this one."""

import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import cartridge_core
from cartridge_core import errors
from cartridge_core.errors import CartridgeError, TrainingError
from cartridge_core.progress import Progress, no_progress
from cartridge_core.training.config import TrainingConfig
from cartridge_core.training.result import TrainingResult, finished_result
from cartridge_core.training.run_identity import RunIdentity

LOG = "processes.log"
"""What the processes said on standard error; removed when they succeed."""
GRACE = 60.0
"""Seconds that the processes get to end; `torchrun` itself gives its own 30."""

logger = logging.getLogger(__name__)


def train_in_processes(
    identity: RunIdentity,
    model: str,
    corpus: Path,
    dataset: Path | None,
    config: TrainingConfig,
    folder: Path,
    processes: int,
    *,
    device: str = "auto",
    threads: int | None = None,
    progress: Progress = no_progress,
) -> TrainingResult:
    """Train with several processes of `cartridge_core.training.launch`; like `loop.train`, it goes on after a kill.

    Args:
        identity: Of the run.
        model: Hub id or folder.
        corpus: Folder of the corpus.
        dataset: Folder of the study; None for the next-token objective.
        config: How to train.
        folder: Where the run's files go.
        processes: How many.
        device: "auto", "cpu" or "cuda".
        threads: CPU threads of each; the machine's cores are shared out where nobody says.
        progress: Told about steps.

    Raises:
        CartridgeError: What the first failing process raised; all others are ended.
        TrainingError: A process died without a word.
    """
    folder.mkdir(parents=True, exist_ok=True)
    told: dict[str, Any] = {"--model": model, "--corpus": corpus, "--folder": folder, "--tenant": identity.tenant}
    told |= {"--device": device, "--threads": threads or max((os.cpu_count() or 1) // processes, 1)}
    if dataset is not None:
        told["--dataset"] = dataset
    with tempfile.TemporaryDirectory(prefix="cartridge-") as temporary, (folder / LOG).open("w") as log:
        told["--config"] = Path(temporary, "training.json")
        told["--config"].write_text(json.dumps(config.for_another_process()), encoding="utf-8")
        arguments = [str(part) for pair in told.items() for part in pair]
        with _torchrun(processes, ["-m", "cartridge_core.training.launch", "--json", *arguments], log) as running:
            error = _watch(running, progress)
    if result := finished_result(identity, folder):
        (folder / LOG).unlink()
        return result
    if error is not None:
        raise error
    raise TrainingError(
        f"A training process died without a word (exit code {running.returncode}); their errors are in {folder / LOG}.",
        "Run the same command again: training goes on from its newest checkpoint. Where the machine's memory ran out, "
        "use fewer processes.",
    )


@contextmanager
def _torchrun(processes: int, command: list[str], log: IO[str]) -> Iterator["subprocess.Popen[str]"]:
    """Run a module in several processes; they end with the block."""
    # The address is this machine's own: its name need not resolve. The package is this very one, wherever it lies.
    options = ["--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", str(processes)]
    paths = [str(Path(cartridge_core.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    running = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *options, *command],
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
    )
    try:
        yield running
    except BaseException:
        running.terminate()
        raise
    finally:
        try:
            running.wait(GRACE)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()
        if running.stdout is not None:
            running.stdout.close()


def _watch(running: "subprocess.Popen[str]", progress: Progress) -> CartridgeError | None:
    """Pass on what rank 0 tells until all have ended; the first error that any of them tells."""
    first: CartridgeError | None = None
    for line in running.stdout or ():
        try:
            value = json.loads(line)
        except ValueError:
            continue  # some library's own words
        if not isinstance(value, dict):
            continue
        if "progress" in value:
            progress(*value["progress"])
        elif "message" in value:
            logger.warning("%s", value["message"])
        elif "error" in value and first is None:
            kind, problem, remedy = value["error"]
            raised = getattr(errors, kind, TrainingError)
            first = raised(problem, remedy)
    return first
