"""`make bench-train`: tokens trained a second, against peft's CARTRIDGE on the same model, data and threads.

Two comparisons, each taking turns with our loop in short rounds. *Loop*: peft's adapter under transformers' `Trainer`
with the teacher's top k cached, as ours has it. Both sides take the same AdamW steps on the same batches by the same
loss, so that they must reach the same held-out divergence. A step's 32 conversations pass through peft's model padded
together, or one at a time as in its example; the faster counts. *As shipped*: the example's own loop, which reads the
document with every conversation. Each side in its default precision; the loop also with both in fp32.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from transformers.utils import logging

from cartridge_core.models import BaseModel, load_base_model
from cartridge_core.proof import FOLDER, write_proof
from cartridge_core.rendering import prefix_token_ids
from cartridge_core.settings import Settings
from cartridge_core.training.config import TrainingConfig
from tests.proofs.our_loop import OurLoop, num_trained
from tests.proofs.peft_loop import CachedTeacherLoop, RereadingLoop, peft_model, prefix_of, train_peft
from tests.proofs.sample_study import SampleStudy, sample_study
from tests.proofs.side_by_side import SideBySide
from tests.proofs.step_profile import profiled

ASKED = {
    "speedup_over_peft_as_shipped": {"at_least": 5.0},
    "speedup_over_peft_loop": {"at_least": 2.0},
    "held_out_loss_ratio": {"at_least": 0.98, "at_most": 1.02},
    "held_out_loss_ratio_float32": {"at_least": 0.98, "at_most": 1.02},
}
NUM_TOKENS = 80
WARM_UP = 2
"""Rounds."""


def configuration(precision: str, steps: int) -> TrainingConfig:
    """Ours; peft's side takes size, learning rates and clipping from it."""
    return TrainingConfig.model_validate(
        {"num_tokens": NUM_TOKENS, "optimizer": "adamw", "precision": precision, "steps": steps, "warmup_steps": 10}
    )


def against_loop(
    base: BaseModel, study: SampleStudy, precision: str, part_size: int, rounds: int, round_steps: int
) -> tuple[SideBySide, float]:
    """The loops side by side, and the ratio of the held-out divergences that they end with (ours over theirs)."""
    config = configuration(precision, max(rounds * round_steps, 60))
    ours = OurLoop(base, study, config)
    model = peft_model(ours.initial, config.num_frozen_tokens, None if precision == "auto" else torch.float32)
    steps = [ours.material.stream.batch(step) for step in range(rounds * round_steps)]
    seconds: list[float] = []
    theirs = train_peft(
        CachedTeacherLoop,
        model,
        steps,
        config,
        part_size=part_size,
        round_steps=round_steps,
        meanwhile=lambda: seconds.append(ours.train(round_steps)),
    )
    starts = range(0, len(steps), round_steps)
    tokens = [sum(num_trained(step) for step in steps[start : start + round_steps]) for start in starts]
    return SideBySide(seconds, theirs, tokens, tokens, WARM_UP), ours.held_out() / ours.held_out(prefix_of(model))


def against_shipped(base: BaseModel, study: SampleStudy, rounds: int) -> SideBySide:
    """A round is one step of each side: 32 conversations of ours, one of theirs."""
    config = configuration("auto", max(rounds, 60))
    ours = OurLoop(base, study, config)
    model = peft_model(ours.initial, config.num_frozen_tokens)
    batches = [ours.material.stream.batch(step) for step in range(rounds)]
    steps = [[batch[0]] for batch in batches]
    seconds: list[float] = []
    theirs = train_peft(
        RereadingLoop,
        model,
        steps,
        config,
        part_size=1,
        round_steps=1,
        meanwhile=lambda: seconds.append(ours.train(1)),
        document=prefix_token_ids(base.tokenizer, study.corpus.text()),
    )
    counts = ([num_trained(step) for step in side] for side in (batches, steps))
    return SideBySide(seconds, theirs, *counts, WARM_UP)


def shares_of_a_step(base: BaseModel, study: SampleStudy) -> dict[str, float]:
    """Where the time of the default recipe's steps goes."""
    ours = OurLoop(base, study, TrainingConfig(num_tokens=NUM_TOKENS, initialization="first_tokens"))
    ours.train(5)
    return profiled(lambda: ours.train(5))


def main() -> int:
    """Run all comparisons and write the proof; the exit code says whether it holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads of both sides")
    parser.add_argument("--rounds", type=int, default=20, help="rounds of a comparison of loops")
    parser.add_argument("--round-steps", type=int, default=3, help="optimizer steps of a round")
    parser.add_argument("--output", type=Path, default=FOLDER, help="folder of the report")
    options = parser.parse_args()
    if min(options.threads, options.round_steps) < 1 or options.rounds < WARM_UP + 3:
        parser.error(f"give at least 1 thread, 1 step a round and {WARM_UP + 3} rounds")
    started, console = time.time(), Console()
    torch.set_num_threads(options.threads)
    logging.disable_progress_bar()
    study = sample_study(Settings(threads=options.threads))
    base = load_base_model("reference", device="cpu")
    batch = configuration("auto", 60).batch_size
    figures: dict[str, float] = {"threads": options.threads}

    shipped = against_shipped(base, study, options.rounds)
    figures |= shipped.figures("speedup_over_peft_as_shipped")
    figures["tokens_per_second_peft_as_shipped"] = statistics.median(shipped.their_rates())
    for precision, suffix in (("auto", ""), ("float32", "_float32")):
        sides = {}
        for part_size, rounds in ((batch, options.rounds), (1, WARM_UP + 4)):
            console.print(f"peft's loop, {part_size} conversations at once, {precision}", style="dim")
            sides[part_size], ratio = against_loop(base, study, precision, part_size, rounds, options.round_steps)
            if part_size == batch:
                figures[f"held_out_loss_ratio{suffix}"] = ratio
        best = max(sides.values(), key=lambda side: statistics.median(side.their_rates()))
        figures |= best.figures(f"speedup_over_peft_loop{suffix}")
        figures |= {
            f"speedup_over_peft_loop_one_at_a_time{suffix}": statistics.median(sides[1].speedups()),
            f"tokens_per_second{suffix}": statistics.median(best.our_rates()),
            f"tokens_per_second_peft_loop{suffix}": statistics.median(best.their_rates()),
        }
    shares = shares_of_a_step(base, study)
    console.print(table_of(shares))
    proof = write_proof(
        "bench-train",
        " ".join(["python -m tests.proofs.bench_train", *sys.argv[1:]]),
        figures,
        ASKED,
        started,
        extra={"profile": {part: round(share, 4) for part, share in shares.items()}, "versions": versions()},
        folder=options.output,
    )
    return 0 if proof.ok else 1


def table_of(shares: dict[str, float]) -> Table:
    """The profile, for people."""
    table = Table(title="A step of the default recipe, by part", title_justify="left")
    table.add_column("Part")
    table.add_column("Time", justify="right")
    for part, share in shares.items():
        table.add_row(part, f"{share:.0%}")
    return table


def versions() -> dict[str, str]:
    """What both sides run on."""
    import peft
    import transformers

    return {module.__name__: module.__version__ for module in (torch, transformers, peft)}


if __name__ == "__main__":
    sys.exit(main())
