"""`make bench-serve`: a corpus in front of a question, three ways, on real vLLM side by side.

*Cold*: the corpus in the prompt, nothing of it computed before. *Warm*: the same, found in vLLM's prefix cache.
*Cartridge*: ours in front. The ways take turns, so many callers ask on and on (each at least once), and every answer's
length and cache hit is checked. With many corpora, the paged memory holds eight documents and callers ask about 64 in
turn. vLLM runs on the CPU with its own defaults, started by `cartridge engine`; the model has random weights, because
no speed depends on them.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from cartridge_core.models import load_tokenizer
from cartridge_core.proof import FOLDER, Bound, write_proof
from cartridge_core.settings import Settings
from tests.proofs.cold_load import cold_load_figures
from tests.proofs.cold_stall import stall_figures
from tests.proofs.http_load import Load, answers_per_second, median_first, run_load
from tests.proofs.llama_shapes import LLAMA_100M
from tests.proofs.serving_arms import (
    BLOCK,
    OUTPUT_TOKENS,
    Corpora,
    behind,
    icl,
    make_corpora,
    make_model,
    target,
    wrong,
)
from tests.vllm_server import vllm_server

SHAPE = replace(LLAMA_100M, name="llama-100m", num_layers=16, vocab_size=1152)
DOCUMENT_TOKENS, CARTRIDGE_TOKENS = 3134, 80
"""The shipped sample corpus in the reference model's tokens, and the quickstart's Cartridge of it."""
LARGE_TOKENS = 3072
"""Of Cartridges that are loaded beside a running answer: 48 MiB each."""
MANY, ROOM_FOR = 64, 8
ASKED: dict[str, dict[str, float] | Bound] = {
    "throughput_over_cold_icl": {"at_least": 10},
    "throughput_over_warm_icl": {"at_least": 2},
    "kv_bytes_ratio": {"at_least": 20},
    "throughput_over_many_corpora_icl": {"at_least": 10},
    "cold_load_bytes_per_s": {"at_least": 1e9},
    "answers_wrong": {"at_most": 0},
}


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    callers: tuple[int, ...] = (1, 8, 32)
    rounds: int = 5
    """Turns of each way."""
    many_rounds: int = 5
    """Turns of each way with many corpora."""
    seconds: float = 8.0
    """Length of a turn; answers asked for are waited for."""


@dataclass(frozen=True)
class Turn:
    """One way's turn."""

    answers_per_s: float
    first_s: float
    wrong: int


def turn(url: str, bodies: list[dict[str, object]], callers: int, seconds: float, cached: tuple[int, int]) -> Turn:
    """Ask, and judge."""
    outcomes = run_load(Load(target(url, bodies), seconds, callers=callers, timeout_s=900))
    return Turn(answers_per_second(outcomes), median_first(outcomes), wrong(outcomes, cached))


def one_corpus(url: str, corpora: Corpora, plan: Plan, say: Callable[[str], None]) -> dict[str, float]:
    """Cold, warm and Cartridge, by the number of callers."""
    figures, bad = dict[str, float](), 0
    document, tokens = len(corpora.documents[0]), corpora.cartridges[0].num_tokens
    warmed = document // BLOCK * BLOCK
    for callers in plan.callers:
        many = [0] * max(256, 4 * callers)
        ways: dict[str, Callable[[], list[dict[str, object]]]] = {
            "cold": lambda callers=callers: icl(corpora, [0] * (8 * callers)),
            "warm": lambda many=many: icl(corpora, many, salt="warm"),
            "cartridge": lambda many=many: behind(corpora, many),
        }
        expected = {
            "cold": (0, 0),
            "warm": (warmed, document + BLOCK),
            "cartridge": (tokens, tokens + BLOCK),
        }
        for name in ("warm", "cartridge"):
            run_load(Load(target(url, ways[name]()), 0.1, callers=1, timeout_s=900))
        turns: dict[str, list[Turn]] = {name: [] for name in ways}
        for number in range(plan.rounds):
            order = list(ways) if number % 2 == 0 else list(ways)[::-1]
            for name in order:
                say(f"{callers} callers, round {number + 1} of {plan.rounds}, {name}")
                turns[name].append(turn(url, ways[name](), callers, plan.seconds, expected[name]))
        bad += sum(one.wrong for name in ways for one in turns[name])
        for name in ways:
            figures[f"{name}_answers_per_s_{callers}"] = statistics.median(one.answers_per_s for one in turns[name])
            figures[f"{name}_first_token_ms_{callers}"] = 1000 * statistics.median(one.first_s for one in turns[name])
        for name in ("cold", "warm"):
            ratios = [
                ours.answers_per_s / theirs.answers_per_s
                for ours, theirs in zip(turns["cartridge"], turns[name], strict=True)
            ]
            figures |= _spread(
                f"throughput_over_{name}_icl{'' if callers == max(plan.callers) else f'_{callers}'}", ratios
            )
    return figures | {"answers_wrong": bad, "kv_bytes_ratio": corpora.kv_bytes_ratio}


def many_corpora(url: str, corpora: Corpora, plan: Plan, say: Callable[[str], None]) -> dict[str, float]:
    """Callers ask about one corpus after the other; memory holds some of the documents and all of the Cartridges."""
    callers, around = max(plan.callers), list(range(MANY))
    tokens, document = corpora.cartridges[0].num_tokens, len(corpora.documents[0])
    rates: dict[str, list[float]] = {"icl": [], "cartridge": []}
    bad = 0
    run_load(Load(target(url, behind(corpora, around)), 3.0, callers=8, timeout_s=900))
    for number in range(plan.many_rounds):
        for name in ("icl", "cartridge") if number % 2 == 0 else ("cartridge", "icl"):
            say(f"{MANY} corpora, round {number + 1} of {plan.many_rounds}, {name}")
            bodies = icl(corpora, around, salt="many") if name == "icl" else behind(corpora, around * 8)
            # In turn and least recently used: what was computed for a document is gone when it is asked about again.
            cached = (0, document) if name == "icl" else (tokens, tokens + BLOCK)
            load = Load(target(url, bodies), plan.seconds, callers=callers, timeout_s=900)
            outcomes = run_load(load)
            bad += wrong(outcomes, cached)
            rates[name].append(answers_per_second(outcomes))
    ratios = [ours / theirs for ours, theirs in zip(rates["cartridge"], rates["icl"], strict=True)]
    return _spread("throughput_over_many_corpora_icl", ratios) | {
        "many_corpora_icl_answers_per_s": statistics.median(rates["icl"]),
        "many_corpora_cartridge_answers_per_s": statistics.median(rates["cartridge"]),
        "many_corpora_answers_wrong": bad,
    }


def _spread(name: str, values: list[float]) -> dict[str, float]:
    return {name: statistics.median(values), f"{name}_lowest": min(values), f"{name}_highest": max(values)}


def main() -> int:
    """Run it and write the proof; the exit code says whether it holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=Plan.rounds, help="turns of each way")
    parser.add_argument("--many-rounds", type=int, default=Plan.many_rounds, help="turns with many corpora")
    parser.add_argument("--seconds", type=float, default=Plan.seconds, help="length of a turn")
    parser.add_argument("--callers", type=int, nargs="+", default=Plan.callers, help="callers at once")
    parser.add_argument("--output", type=Path, default=FOLDER, help="folder of the report")
    options = parser.parse_args()
    plan = Plan(tuple(options.callers), options.rounds, options.many_rounds, options.seconds)
    started, console = time.time(), Console()

    def say(text: str) -> None:
        console.print(text, style="dim")

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = make_model(SHAPE, load_tokenizer("reference"), folder / SHAPE.name)
        settings = Settings(home=folder / "home", attachment_key="k" * 40, base_model=str(model))
        corpora = make_corpora(settings, SHAPE, SHAPE.name, MANY, DOCUMENT_TOKENS, CARTRIDGE_TOKENS)
        large = make_corpora(settings, SHAPE, SHAPE.name, 6, DOCUMENT_TOKENS, LARGE_TOKENS)
        figures = cold_load_figures(folder)
        window = ("--max-model-len", "4096")
        say("starting vLLM")
        with vllm_server(settings, folder, *window, kv_gib=4) as server:
            figures |= one_corpus(server.url, corpora, plan, say)
            say("cold loads beside a running answer")
            figures |= stall_figures(server.url, corpora, large)
        blocks = ROOM_FOR * -(-(DOCUMENT_TOKENS + OUTPUT_TOKENS + BLOCK) // BLOCK) + 1
        say(f"starting vLLM with memory for {ROOM_FOR} documents")
        with vllm_server(settings, folder, *window, "--num-gpu-blocks-override", str(blocks), kv_gib=4) as server:
            figures |= many_corpora(server.url, corpora, plan, say)
    figures["answers_wrong"] += figures.pop("many_corpora_answers_wrong")
    proof = write_proof("bench-serve", "make bench-serve", figures, ASKED, started, folder=options.output)
    return 0 if proof.ok else 1


if __name__ == "__main__":
    sys.exit(main())
