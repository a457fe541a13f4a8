"""`make bench-recipe`: optimizer steps and seconds to the held-out loss that the paper's recipe ends with.

Three corpora of the reference world, three seeds (initialisation, held-out questions, order of the data), the same
batches on both sides. Held out is an exam: a second study of the corpus, less all questions that were trained on. The
paper's side takes 2,000 steps at the best of four rates (found on the first corpus with the first seed); the best of
its looks at the exam is the mark. Ours is the default configuration with one number of steps for all pairs: a pair
that is not at its mark after them fails the comparison, and no length is picked pair by pair, which would pick lucky
draws. `steps_ratio` counts the paper's steps up to the look that is the mark; `steps_ratio_whole`, for comparison, all
2,000. The default begins with the reference model's learned start: what that cost, once for all corpora, is in no
figure here, and none of its corpora is compared on. Seconds are the process's own, so that other work on the machine
counts for neither; the paper's looks are free, those of ours at its own held-out questions are not. Runs are kept: an
interrupted comparison goes on, and several processes may each make the paper's runs of a corpus first
(`--corpora NAME --paper-only`).
"""

import argparse
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from cartridge_core.benchmarks.interval import paired_difference, wilson
from cartridge_core.cli.console import progress_bars
from cartridge_core.initialization.shipped_starts import SHIPPED_STARTS
from cartridge_core.manifest import read_manifest
from cartridge_core.models import BaseModel
from cartridge_core.progress import Progress
from cartridge_core.proof import FOLDER, write_proof
from cartridge_core.settings import Settings
from cartridge_core.stages.model import borrowed_model
from cartridge_core.training.config import TrainingConfig
from tests.proofs.recipe_corpora import NAMES, RecipeCorpus, recipe_corpus
from tests.proofs.recipe_run import RecipeRun, kept_run
from tests.proofs.recipes import our_recipe, paper_recipe

ASKED = {
    "steps_ratio": {"at_most": 0.1},
    "seconds_ratio": {"at_most": 0.2},
    "accuracy_minus_paper_recipe": {"at_least": 0.0},
}
SEEDS = (0, 1, 2)
PAPER_STEPS = 2000
PAPER_RATES = (0.02, 0.05, 0.1, 0.2)
OUR_STEPS = 178
NUM_TOKENS = 80
PAPER_FIELDS = {"num_tokens", "num_frozen_tokens", "learning_rate", "steps", "batch_size", "seed", "precision"}


@dataclass(frozen=True)
class Pair:
    """Both sides on one corpus with one seed."""

    name: str
    seed: int
    rate: float
    paper: RecipeRun
    ours: RecipeRun

    @property
    def ratios(self) -> tuple[float, float]:
        """Our steps and seconds over the paper's; infinite where its mark was never reached."""
        look, mark = self.ours.reached(self.paper.best.kl), self.paper.best
        return (look.step / mark.step, look.seconds / mark.seconds) if look else (float("inf"), float("inf"))


class Comparison:
    """Makes runs, or finds them."""

    def __init__(self, base: BaseModel, folder: Path, progress: Progress) -> None:
        self._base, self._folder, self._progress = base, folder, progress

    def paper(self, about: RecipeCorpus, seed: int, rate: float, steps: int = PAPER_STEPS) -> RecipeRun:
        """The paper's side."""
        config = TrainingConfig(
            num_tokens=NUM_TOKENS,
            initialization="first_tokens",
            optimizer="adamw",
            learning_rate=rate,
            schedule="constant",
            sampling="uniform",
            steps=steps,
            seed=seed,
        )
        return self._run("paper", about, config)

    def ours(self, about: RecipeCorpus, seed: int, steps: int) -> RecipeRun:
        """Our side: the defaults."""
        config = TrainingConfig(
            num_tokens=NUM_TOKENS, steps=steps, eval_every=max(steps // 10, 1), patience=None, seed=seed
        )
        return self._run("ours", about, config)

    def best_rate(self, about: RecipeCorpus) -> float:
        """The paper's best rate on a corpus, with the first seed."""
        return min(PAPER_RATES, key=lambda rate: self.paper(about, SEEDS[0], rate).best.kl)

    def pairs(self, about: RecipeCorpus, rate: float, steps: int) -> Iterator[Pair]:
        """Both sides of a corpus, seed by seed."""
        for seed in SEEDS:
            yield Pair(about.name, seed, rate, self.paper(about, seed, rate), self.ours(about, seed, steps))

    def _run(self, side: str, about: RecipeCorpus, config: TrainingConfig) -> RecipeRun:
        inputs: dict[str, Any] = {
            "side": side,
            "corpus": about.corpus.digest,
            "dataset": about.conversations.manifest.digest,
            "base_model": self._base.identity.model_dump(mode="json"),
            # The paper's recipe has no use for most of the fields, and must not be run again when one is added.
            "config": config.recipe() if side == "ours" else config.model_dump(mode="json", include=PAPER_FIELDS),
        }
        what = f"{side}, {about.name}, seed {config.seed}, {config.steps} steps at {config.learning_rate:g}"
        if side == "ours":
            inputs["start"] = read_manifest(SHIPPED_STARTS[0]).digest
        recipe = {"paper": paper_recipe, "ours": our_recipe}[side]

        def progress(done: int, total: int, doing: str) -> None:
            self._progress(done, total, f"{what}: {doing}")

        return kept_run(self._folder, inputs, lambda: recipe(self._base, about, config, inputs, progress))


def table(pairs: Sequence[Pair]) -> Table:
    """One row a corpus and seed."""
    shown = Table(title="Steps to the best divergence of the paper's recipe on the exam", title_justify="left")
    for column in ("Corpus", "Seed", "Rate", "Mark", "Paper: steps", "s", "Right", "Ours: steps", "s", "KL", "Right"):
        shown.add_column(column, justify="left" if column == "Corpus" else "right")
    for pair in pairs:
        mark, look = pair.paper.best, pair.ours.reached(pair.paper.best.kl)
        shown.add_row(
            pair.name,
            str(pair.seed),
            f"{pair.rate:g}",
            f"{mark.kl:.4f}",
            str(mark.step),
            f"{mark.seconds:.0f}",
            _share(pair.paper),
            str(look.step) if look else "not reached",
            f"{look.seconds:.0f}" if look else "",
            f"{pair.ours.best.kl:.4f}",
            _share(pair.ours),
        )
    return shown


def row_of(pair: Pair) -> dict[str, Any]:
    """A pair in the report."""
    return {
        "corpus": pair.name,
        "seed": pair.seed,
        "rate": pair.rate,
        "mark": pair.paper.best.model_dump(),
        "ours": pair.ours.best.model_dump(),
        "reached": pair.ours.reached(pair.paper.best.kl) is not None,
        "accuracy": [pair.paper.accuracy, pair.ours.accuracy],
    }


def _share(run: RecipeRun) -> str:
    interval = wilson(run.right)
    return f"{run.accuracy:.1%} [{interval.low:.1%}, {interval.high:.1%}]"


def figures_of(pairs: Sequence[Pair]) -> dict[str, float]:
    """Means over corpora and seeds, with their spread."""
    steps, seconds = zip(*(pair.ratios for pair in pairs), strict=True)
    ours = [right for pair in pairs for right in pair.ours.right]
    paper = [right for pair in pairs for right in pair.paper.right]
    difference = paired_difference(ours, paper, 10_000, 0)
    return {
        "steps_ratio": statistics.mean(steps),
        "steps_ratio_whole": statistics.mean(pair.ours.best.step / PAPER_STEPS for pair in pairs),
        "steps_ratio_least": min(steps),
        "steps_ratio_most": max(steps),
        "seconds_ratio": statistics.mean(seconds),
        "seconds_ratio_least": min(seconds),
        "seconds_ratio_most": max(seconds),
        "pairs_at_mark": sum(pair.ours.reached(pair.paper.best.kl) is not None for pair in pairs),
        "accuracy_minus_paper_recipe": statistics.mean(ours) - statistics.mean(paper),
        "accuracy_minus_paper_recipe_low": difference.low,
        "accuracy_minus_paper_recipe_high": difference.high,
        "accuracy_ours": statistics.mean(ours),
        "accuracy_paper_recipe": statistics.mean(paper),
        "questions": len(ours),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare and write the proof; the exit code says whether it holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpora", nargs="+", choices=NAMES, default=list(NAMES), help="make runs of these only")
    parser.add_argument("--paper-only", action="store_true", help="make the paper's runs and stop")
    parser.add_argument("--steps", type=int, default=OUR_STEPS, help="of our side")
    parser.add_argument("--home", type=Path, default=Path("build/bench-recipe"), help="where runs and studies are kept")
    parser.add_argument("--output", type=Path, default=FOLDER, help="folder of the report")
    options = parser.parse_args(arguments)
    started = time.time()
    # One thread: processor seconds of several would count their waiting for each other.
    torch.set_num_threads(1)
    settings = Settings(home=options.home, threads=1)
    pairs: list[Pair] = []
    with progress_bars() as progress:
        first, *others = (recipe_corpus(settings, name, progress) for name in NAMES)
        with borrowed_model(settings, "reference", "auto") as base:
            comparison = Comparison(base, options.home / "runs", progress)
            rate = comparison.best_rate(first)
            for about in (first, *others):
                if options.paper_only and about.name in options.corpora:
                    for seed in SEEDS:
                        comparison.paper(about, seed, rate)
                elif about.name in options.corpora:
                    pairs += comparison.pairs(about, rate, options.steps)
    if len(pairs) < len(NAMES) * len(SEEDS):
        print("These runs are made. Without options the comparison is written.")
        return 0
    # Whole into a file or a pipe, too, where rich would squeeze the columns into 80 characters.
    Console(width=None if sys.stdout.isatty() else 160).print(table(pairs))
    command = " ".join(["python -m tests.proofs.bench_recipe", *(arguments if arguments is not None else sys.argv[1:])])
    extra: dict[str, Any] = {"torch": torch.__version__, "rows": [row_of(pair) for pair in pairs]}
    proof = write_proof("bench-recipe", command, figures_of(pairs), ASKED, started, extra, options.output)
    return 0 if proof.ok else 1


if __name__ == "__main__":
    sys.exit(main())
