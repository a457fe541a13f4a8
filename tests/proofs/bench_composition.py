"""`make bench-composition`: what two Cartridges that were trained apart are worth together, placed in several ways.

Two corpora of the reference world that fit its window together, a Cartridge each by the default recipe. Every arm is
asked the questions of both: no context, both corpora in context, each Cartridge alone (also with the question as far
away as in a composition), and both in either order, with one attention sink or two. Their keys stay as they are, or
are turned to stand in line, or each to end where the question begins, as it was trained; the last is what is served.
"""

import argparse
import itertools
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from cartridge_core.baselines import BASELINES, ICL, NO_CONTEXT, Arm
from cartridge_core.benchmarks import BENCHMARKS
from cartridge_core.cartridge import Cartridge
from cartridge_core.cli.console import progress_bars
from cartridge_core.compose import compose
from cartridge_core.corpus import Corpus
from cartridge_core.evaluation import ArmResult, evaluate
from cartridge_core.models import BaseModel
from cartridge_core.positions import rerotate
from cartridge_core.prefix_kv import PrefixKV
from cartridge_core.proof import FOLDER, write_proof
from cartridge_core.settings import Settings
from cartridge_core.stages.fit import fit
from cartridge_core.stages.model import borrowed_model
from cartridge_core.stages.quickstart_plan import SHORT_PLAN
from tests.proofs.composition_corpora import MODEL, TRAINING, HalfCorpus, halves

SEEDS = ("composed",)
"""Draws of the world; a pair of corpora each."""

WAYS = AS_THEY_ARE, IN_LINE, AT_THE_END = "as they are", "in line", "each at the end"
"""Where keys are turned to."""

Row = tuple[str, str, ArmResult, ArmResult]
"""Draw, arm, and how it did in the first and the second corpus's questions."""


def placed(base: BaseModel, cartridges: Sequence[Cartridge], how: str, sinks: bool) -> PrefixKV:
    """Cartridges one behind the other.

    Args:
        base: Their base model.
        cartridges: In order.
        how: A key of `WAYS`.
        sinks: Whether later ones keep their frozen tokens.
    """
    kept = [c.num_tokens - (0 if sinks or not n else c.manifest.num_frozen_tokens) for n, c in enumerate(cartridges)]
    total = sum(kept)
    keys: list[list[torch.Tensor]] = [[] for _ in base.layer_specs]
    values: list[list[torch.Tensor]] = [[] for _ in base.layer_specs]
    taken = 0
    for cartridge, count in zip(cartridges, kept, strict=True):
        skipped = cartridge.num_tokens - count
        start = torch.tensor(cartridge.manifest.key_positions)[skipped:]
        for layer, (key, value) in enumerate(zip(cartridge.keys, cartridge.values, strict=True)):
            if key is None or value is None:
                continue
            shift = {AS_THEY_ARE: 0, IN_LINE: taken - skipped, AT_THE_END: total - cartridge.num_tokens}[how]
            keys[layer].append(rerotate(key[:, skipped:].float(), start, start + shift, base.inv_freq(layer)))
            values[layer].append(value[:, skipped:].float())
        taken += count
    return PrefixKV([torch.cat(side, 1) for side in keys], [torch.cat(side, 1) for side in values], taken)


def arms(base: BaseModel, corpora: Sequence[Corpus], cartridges: Sequence[Cartridge]) -> Iterator[Arm]:
    """Everything that is asked."""
    both = Corpus.joined(corpora)
    yield from (BASELINES[name](base, both, 0) for name in (NO_CONTEXT, ICL))
    ways: dict[str, PrefixKV] = {
        f"{name} alone": cartridge.prefix() for name, cartridge in zip("ab", cartridges, strict=True)
    }
    length = sum(cartridge.num_tokens for cartridge in cartridges)
    ways |= {f"{name}, question as far away": replace(prefix, next_position=length) for name, prefix in ways.items()}
    for order, parts in (("a+b", cartridges), ("b+a", cartridges[::-1])):
        for how, sinks in itertools.product(WAYS, (True, False)):
            ways[f"{order}, {how}, {'every' if sinks else 'one'} sink"] = placed(base, parts, how, sinks)
        ways[f"{order}, as served"] = compose(parts)
    for name, prefix in ways.items():
        yield Arm(name, prefix, prefix.num_tokens, prefix.kv_bytes(base.kv_dtype))


def measured(settings: Settings, seed: str, progress: Any) -> Iterator[Row]:
    """All arms on a draw's two sets of questions."""
    pair: Sequence[HalfCorpus] = halves(settings, seed)
    cartridges = [fit(settings, half.corpus, half.studied(settings), TRAINING, MODEL, progress).load() for half in pair]
    with borrowed_model(settings, MODEL, "auto") as base:
        for arm in arms(base, [half.corpus.load() for half in pair], cartridges):
            first, second = (
                evaluate(base, arm, half.questions, BENCHMARKS["closed_answer"], SHORT_PLAN.evaluation, progress)
                for half in pair
            )
            yield seed, arm.name, first, second


def _share(result: ArmResult) -> str:
    interval = result.interval
    return "" if interval is None else f"{result.score:.1%} [{interval.low:.1%}, {interval.high:.1%}]"


def _mean(rows: Sequence[Row], name: str) -> float:
    results = [result for _, arm, *both in rows if arm == name for result in both]
    return sum((result.score or 0.0) * result.n for result in results) / sum(result.n for result in results)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write the proof; nothing is asked of the figures: the gate judges compositions one by one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", nargs="+", default=list(SEEDS), help="draws of the world")
    parser.add_argument("--home", type=Path, default=Path("build/bench-composition"), help="where Cartridges are kept")
    parser.add_argument("--output", type=Path, default=FOLDER, help="folder of the report")
    options = parser.parse_args(arguments)
    started = time.time()
    settings = Settings(home=options.home, base_model=MODEL)
    with progress_bars() as progress:
        rows = [row for seed in options.draws for row in measured(settings, seed, progress)]
    shown = Table(title="Two Cartridges, trained apart", title_justify="left")
    for column in ("Draw", "In front", "Tokens", "Questions about a", "Questions about b"):
        shown.add_column(column)
    for seed, name, first, second in rows:
        shown.add_row(seed, name, str(first.num_tokens), _share(first), _share(second))
    Console(width=140).print(shown)
    names = dict.fromkeys(name for _, name, *_ in rows)
    figures = {f"accuracy, {name}": _mean(rows, name) for name in names}
    command = " ".join(
        ["python -m tests.proofs.bench_composition", *(arguments if arguments is not None else sys.argv[1:])]
    )
    told = [[seed, name, first.score, second.score, first.n, second.n] for seed, name, first, second in rows]
    extra: dict[str, Any] = {"rows": told}
    write_proof("bench-composition", command, figures, {}, started, extra, options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
