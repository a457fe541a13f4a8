"""What ways of passing the frozen model cost on this machine: time of a step and peak memory, a fresh process each.

    python -m tests.proofs.mode_costs --model reference
    python -m tests.proofs.mode_costs --model llama_100m

The reference model trains on the sample's study, a stock Llama of 100 million random weights on random conversations of
together about 1,900 tokens a step.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from cartridge_core.settings import Settings
from cartridge_core.training.base_weights import hold_in_float8, load_frozen_model
from cartridge_core.training.config import TrainingConfig
from cartridge_core.training.layer_modes import compiled_layers
from tests.proofs.llama_shapes import LLAMA_100M, random_model
from tests.proofs.synthetic_conversations import SyntheticConversations
from tests.proofs.throughput import measure

MODES: dict[str, dict[str, Any]] = {
    "default": {},
    "compile": {"compile": True},
    "activation_checkpointing": {"activation_checkpointing": True},
    "base_dtype bfloat16": {"base_dtype": "bfloat16"},
    "base_dtype float8": {"base_dtype": "float8"},
}
NUM_TOKENS = {"reference": 80, "llama_100m": 256}
TYPES = {"auto": torch.float32, "bfloat16": torch.bfloat16, "float8": torch.bfloat16}


def reference(config: TrainingConfig, steps: int) -> dict[str, float]:
    """Seconds of the first step and of later ones, and the held-out divergence after the last one."""
    from tests.proofs.our_loop import OurLoop
    from tests.proofs.sample_study import sample_study

    loop = OurLoop(load_frozen_model("reference", "cpu", config.base_dtype), sample_study(Settings()), config)
    with compiled_layers(loop.base, config.compile):
        seconds = [loop.train(1) for _ in range(steps)]
    return {"first": seconds[0], "later": statistics.median(seconds[3:]), "held_out": loop.held_out()}


def llama(config: TrainingConfig, steps: int) -> dict[str, float]:
    """Seconds of the first step and of later ones, and the loss of the last one."""
    base = random_model(LLAMA_100M, torch.device("cpu"), TYPES[config.base_dtype])
    if config.base_dtype == "float8":
        hold_in_float8(base.model)
    conversations = SyntheticConversations(LLAMA_100M.vocab_size, 8, (32, 128), (64, 256))
    seen = measure(base, LLAMA_100M, config, conversations, steps=max(steps // 2, 1))
    return {"first": seen.first_step_seconds, "later": seen.step_seconds, "loss": seen.loss}


def one(model: str, mode: str, steps: int) -> dict[str, float]:
    """Measure in this process."""
    stated = {"num_tokens": NUM_TOKENS[model], "warmup_steps": 5, "steps": max(steps, 10)} | MODES[mode]
    seen = (reference if model == "reference" else llama)(TrainingConfig.model_validate(stated), steps)
    # Kilobytes on Linux; what compiling takes in other processes is not in it.
    return seen | {"peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def main() -> int:
    """Measure every mode in processes of its own, in turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=NUM_TOKENS, default="reference")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--one", choices=MODES, help="measure this mode in this process, and print JSON")
    options = parser.parse_args()
    if options.steps < 4 or min(options.turns, options.threads) < 1:
        parser.error("give at least 4 steps, 1 turn and 1 thread")
    torch.set_num_threads(options.threads)
    if options.one:
        print(json.dumps(one(options.model, options.one, options.steps)))
        return 0
    same = ["--model", options.model, "--steps", str(options.steps), "--threads", str(options.threads)]
    seen: dict[str, list[dict[str, float]]] = {mode: [] for mode in options.modes}
    started = time.time()
    for _ in range(options.turns):
        for mode, rows in seen.items():
            command = [sys.executable, "-m", "tests.proofs.mode_costs", *same, "--one", mode]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            rows.append(json.loads(done.stdout.splitlines()[-1]))
            print(mode, rows[-1], file=sys.stderr, flush=True)
    names = list(seen[options.modes[0]][0])
    table = Table(title=f"{options.model}, {options.threads} threads, {time.time() - started:.0f} s")
    for column in ("mode", *names):
        table.add_column(column, justify="left" if column == "mode" else "right")
    for mode, rows in seen.items():
        table.add_row(mode, *(f"{statistics.median(row[name] for row in rows):.4g}" for name in names))
    Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
