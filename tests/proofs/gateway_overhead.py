"""`make bench-gateway`: what the gateway costs, in front of an engine against the engine asked directly.

Both sides are asked for the same: the gateway gets conversations as text, which it renders and tokenises; the engine
gets the tokens that come of it, at its own /v1/completions. They take turns in short rounds, from a load generator in a
process of its own.

*At half of the engine's peak rate* questions come at even intervals whatever happens (open loop), to both sides at the
same time and half of them to each; `gateway_overhead_ms_p50` is the median of the rounds' differences of the median
time to an answer's end.
*At the peak* so many callers ask on and on (closed loop); `gateway_share_of_engine_throughput` is the median of the
rounds' ratios of answers a second. An answer of another length than asked for, or none, makes the run fail.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console

from cartridge_core.proof import FOLDER, Bound, write_proof
from cartridge_core.rendering import bare_prefix_token_ids, render_turns
from cartridge_core.serving.prompt import ServedModel, read_served_model
from cartridge_core.settings import Settings
from tests.proofs.http_load import (
    Load,
    Outcome,
    Target,
    answers_per_second,
    command_line,
    median,
    median_first,
    run_load,
)
from tests.proofs.vllm_gateway import vllm_and_gateway

ASKED: dict[str, dict[str, float] | Bound] = {
    "gateway_overhead_ms_p50": {"at_most": 3.0},
    "gateway_share_of_engine_throughput": {"at_least": 0.9},
    "answers_lost": {"at_most": 0},
}


@dataclass(frozen=True)
class Sides:
    """The same question on both ways; streamed, with usage, greedy."""

    engine: Target
    """The engine's own /v1/completions, with token ids."""
    gateway: Target
    """The gateway's endpoint."""
    tokens: int
    """Length that every answer must have."""


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    callers: int = 32
    """At once, at the peak."""
    round_s: float = 15.0
    """Seconds of one side's turn."""
    rounds: int = 5
    """Turns of each side."""
    warm_up_s: float = 5.0
    """Seconds of either side's load before anything counts."""


def overhead(sides: Sides, plan: Plan, say: Callable[[str], None] = lambda text: None) -> dict[str, float]:
    """Measure both figures, and what they are made of.

    Args:
        sides: What is asked, on both ways.
        plan: How much.
        say: Told what is being done.
    """
    both = (sides.engine, sides.gateway)
    for target in both:
        say(f"warming up {target.url}")
        outcomes = run_load(Load(target, plan.warm_up_s, callers=plan.callers))
        if problems := sorted({one.problem for one in outcomes if one.problem}):
            say(f"{len(problems)} problems, the first: {problems[0]}")
    peaks: list[tuple[float, float]] = []
    lost = 0
    for number in range(plan.rounds):
        say(f"peak, round {number + 1} of {plan.rounds}")
        rates = []
        for target in _turns(both, number):
            outcomes = run_load(Load(target, plan.round_s, callers=plan.callers))
            lost += _lost(outcomes, sides.tokens)
            rates.append(answers_per_second(outcomes))
        peaks.append(_in_order(rates, number))
    rate = statistics.median(engine for engine, _ in peaks) / 2
    times: list[tuple[float, float]] = []
    firsts: list[tuple[float, float]] = []
    for number in range(plan.rounds):
        say(f"{rate:.1f} a second, round {number + 1} of {plan.rounds}")
        # At once, each with half of the questions: what one side waits for the engine, the other waits as well.
        with ThreadPoolExecutor(2) as pool:
            rounds = list(pool.map(lambda target: run_load(Load(target, plan.round_s, rate=rate / 2)), both))
        lost += sum(_lost(outcomes, sides.tokens) for outcomes in rounds)
        engine_s, gateway_s = (median([o.seconds for o in outcomes]) for outcomes in rounds)
        times.append((engine_s, gateway_s))
        engine_first, gateway_first = (median_first(outcomes) for outcomes in rounds)
        firsts.append((engine_first, gateway_first))
    added = [1000 * (gateway - engine) for engine, gateway in times]
    shares = [gateway / engine for engine, gateway in peaks]
    return {
        "gateway_overhead_ms_p50": statistics.median(added),
        "gateway_overhead_ms_p50_lowest": min(added),
        "gateway_overhead_ms_p50_highest": max(added),
        "gateway_overhead_first_token_ms_p50": statistics.median(1000 * (g - e) for e, g in firsts),
        "gateway_share_of_engine_throughput": statistics.median(shares),
        "gateway_share_of_engine_throughput_lowest": min(shares),
        "gateway_share_of_engine_throughput_highest": max(shares),
        "engine_answers_per_second_at_peak": statistics.median(engine for engine, _ in peaks),
        "gateway_answers_per_second_at_peak": statistics.median(gateway for _, gateway in peaks),
        "answers_per_second_at_half": rate,
        "engine_ms_p50_at_half": 1000 * statistics.median(engine for engine, _ in times),
        "gateway_ms_p50_at_half": 1000 * statistics.median(gateway for _, gateway in times),
        "answers_lost": float(lost),
    }


def _turns(both: tuple[Target, Target], number: int) -> tuple[Target, ...]:
    # Who goes first changes, so that neither always finds the machine as the other left it.
    return both if number % 2 == 0 else both[::-1]


def _in_order(values: list[float], number: int) -> tuple[float, float]:
    first, second = values
    return (first, second) if number % 2 == 0 else (second, first)


def _lost(outcomes: list[Outcome], tokens: int) -> int:
    return sum(bool(outcome.problem) or outcome.tokens != tokens for outcome in outcomes)


def sides_of(
    engine: str,
    gateway: str,
    model: ServedModel,
    served_as: str,
    tokens: int,
    key: str | None = None,
    never: int | None = None,
) -> Sides:
    """Questions to a base model on both ways, without a Cartridge.

    Args:
        engine: Address of the engine.
        gateway: Address of the gateway.
        model: The base model.
        served_as: What the engine calls it.
        tokens: Length of the answers.
        key: The gateway's API key.
        never: A token that must not come: the end of a model whose answers would be shorter.
    """
    front = bare_prefix_token_ids(model.tokenizer)
    texts = [f"Question {number}: which ward has patient {number * 7919 % 1000}, and why?" for number in range(64)]
    talks = [[{"role": "user", "content": text}] for text in texts]
    prompts = [front + render_turns(model.tokenizer, talk, add_generation_prompt=True).token_ids for talk in talks]
    common: dict[str, Any] = {
        "max_tokens": tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if never is not None:
        common["logit_bias"] = {str(never): -100}
    direct = tuple({"model": served_as, "prompt": prompt, **common} for prompt in prompts)
    through = tuple({"model": model.identity.id, "messages": talk, **common} for talk in talks)
    headers = {"authorization": f"Bearer {key}"} if key else {}
    return Sides(
        Target(f"{engine}/v1/completions", direct), Target(f"{gateway}/v1/chat/completions", through, headers), tokens
    )


def main() -> int:
    """Run it and write the proof; the exit code says whether it holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine-url", help="the engine, as http://127.0.0.1:8001; both are started where nobody says")
    parser.add_argument("--gateway-url", help="the gateway in front of that engine")
    parser.add_argument("--key", help="the gateway's API key")
    parser.add_argument("--model", help="the base model: hub id or folder; the settings' own where nobody says")
    parser.add_argument("--served-as", help="what the engine calls it; its first model where nobody says")
    parser.add_argument("--tokens", type=int, default=32, help="length of an answer")
    parser.add_argument("--callers", type=int, default=Plan.callers, help="callers at once, at the peak")
    parser.add_argument("--round-seconds", type=float, default=Plan.round_s, help="length of a turn")
    parser.add_argument("--rounds", type=int, default=Plan.rounds, help="turns of each side")
    parser.add_argument("--output", type=Path, default=FOLDER, help="folder of the report")
    options = parser.parse_args()
    if (options.engine_url is None) != (options.gateway_url is None):
        parser.error("give --engine-url and --gateway-url together")
    started = time.time()
    if options.engine_url:
        model = options.model or Settings().base_model
        figures = _measured(options, options.engine_url.rstrip("/"), options.gateway_url.rstrip("/"), model)
    else:
        with vllm_and_gateway() as pair:
            figures = _measured(options, pair.engine, pair.gateway, str(pair.model))
    command = command_line("tests.proofs.gateway_overhead")
    proof = write_proof("bench-gateway", command, figures, ASKED, started, folder=options.output)
    return 0 if proof.ok else 1


def _measured(options: argparse.Namespace, engine: str, gateway: str, name: str) -> dict[str, float]:
    console = Console()
    served_as = options.served_as or httpx.get(f"{engine}/v1/models").json()["data"][0]["id"]
    model = read_served_model(name)
    end = model.tokenizer.eos_token_id
    sides = sides_of(engine, gateway, model, served_as, options.tokens, options.key, end)
    plan = Plan(options.callers, options.round_seconds, options.rounds)
    return overhead(sides, plan, lambda text: console.print(text, style="dim"))


if __name__ == "__main__":
    sys.exit(main())
