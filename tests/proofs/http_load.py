"""A load of streamed answers over HTTP, from a process of its own: it knows OpenAI's wire and nothing of what answers.

Closed loop: so many callers, each asking again when it was answered (what the other side can do at its peak). Open
loop: requests at fixed times whatever happens (what a caller waits at a given rate; a slow answer delays no question).
"""

import asyncio
import itertools
import json
import math
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import aiohttp


@dataclass(frozen=True)
class Target:
    """What is asked."""

    url: str
    """With the path."""
    bodies: tuple[dict[str, Any], ...]
    """Asked in turn; each with `stream` and `stream_options.include_usage`, so that the end is known to be one."""
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Load:
    """One stretch of load on one target."""

    target: Target
    seconds: float
    """Questions are asked for so long; those asked are waited for."""
    callers: int = 0
    """Closed loop: how many ask at once; 0 for an open loop."""
    rate: float = 0.0
    """Open loop: questions a second, evenly."""
    hang_up: float = 0.0
    """Share of streams that the caller leaves after the first word."""
    timeout_s: float = 120.0
    """After so long without an end an answer counts as lost."""


@dataclass(frozen=True)
class Outcome:
    """One answer."""

    body: int
    """Which of the target's bodies asked for it."""
    at: float
    """Seconds since the load began."""
    seconds: float
    """From the question (open loop: from when it was due) to the end of the stream."""
    first: float
    """To its first word; NaN where none came."""
    tokens: int
    """As its usage counts them."""
    text: str
    problem: str = ""
    """Why it is lost; empty for a whole answer."""
    left: bool = False
    """The caller hung up on purpose."""
    cached: int = -1
    """Prompt tokens that were not computed, where the other side tells."""


def run_load(load: Load) -> list[Outcome]:
    """Run a load in a process of its own.

    Raises:
        RuntimeError: That process failed.
    """
    command = [sys.executable, "-m", "tests.proofs.http_load"]
    done = subprocess.run(command, input=json.dumps(asdict(load)), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"The load generator failed: {done.stderr[-2000:]}")
    return [Outcome(**json.loads(line)) for line in done.stdout.splitlines()]


def command_line(module: str) -> str:
    """What was run, for the report: without an API key."""
    arguments = sys.argv[1:]
    shown = ["..." if before == "--key" else one for before, one in zip(["", *arguments], arguments, strict=False)]
    return " ".join([f"python -m {module}", *shown])


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which a share of them lies; NaN where there are none."""
    if not values:
        return float("nan")
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def median(values: Sequence[float]) -> float:
    """The median; NaN where there are none."""
    return statistics.median(values) if values else float("nan")


def answers_per_second(outcomes: Sequence[Outcome]) -> float:
    """To the end of the last answer: callers who began together go on in waves, and a round's end would cut one."""
    return len(outcomes) / max(outcome.at + outcome.seconds for outcome in outcomes)


def median_first(outcomes: Sequence[Outcome]) -> float:
    """Seconds to the first word; of random weights some answers have no character that could be shown."""
    return median([outcome.first for outcome in outcomes if not math.isnan(outcome.first)])


async def sent(load: Load) -> list[Outcome]:
    """Run a load in this process."""
    timeout = aiohttp.ClientTimeout(total=load.timeout_s)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
        return await (_closed(session, load) if load.callers else _open(session, load))


async def _closed(session: aiohttp.ClientSession, load: Load) -> list[Outcome]:
    began, outcomes = time.perf_counter(), list[Outcome]()
    dice, count, asked = random.Random(0), len(load.target.bodies), itertools.count()

    async def caller() -> None:
        while time.perf_counter() - began < load.seconds:
            due = time.perf_counter()
            outcome = await _answer(session, load, next(asked) % count, began, due, dice.random() < load.hang_up)
            outcomes.append(outcome)
            if outcome.problem:
                # Whoever refuses at once must not be asked in a tight circle.
                await asyncio.sleep(0.2)

    await asyncio.gather(*(caller() for _ in range(load.callers)))
    return outcomes


async def _open(session: aiohttp.ClientSession, load: Load) -> list[Outcome]:
    began, tasks = time.perf_counter(), list[asyncio.Task[Outcome]]()
    dice, count = random.Random(0), len(load.target.bodies)
    for number in range(max(1, int(load.seconds * load.rate))):
        due = began + number / load.rate
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        leaves = dice.random() < load.hang_up
        tasks.append(asyncio.create_task(_answer(session, load, number % count, began, due, leaves)))
    return [await task for task in tasks]


async def _answer(
    session: aiohttp.ClientSession, load: Load, body: int, began: float, due: float, leaves: bool
) -> Outcome:
    first, tokens, text, problem, left, whole, cached = float("nan"), 0, list[str](), "", False, False, -1
    target = load.target
    try:
        async with session.post(target.url, json=target.bodies[body], headers=target.headers) as reply:
            if reply.status != 200:
                problem = f"{reply.status}: {(await reply.text())[:300]}"
            else:
                async for line in reply.content:
                    if not line.startswith(b"data: "):
                        continue
                    if line.startswith(b"data: [DONE]"):
                        whole = True
                        continue
                    event = json.loads(line[6:])
                    if event.get("error"):
                        problem = str(event["error"])[:300]
                        continue
                    said = "".join(_words(choice) for choice in event["choices"])
                    text.append(said)
                    if said and first != first:
                        first = time.perf_counter() - due
                    if usage := event.get("usage"):
                        tokens = usage["completion_tokens"]
                        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", cached)
                    if said and leaves:
                        left = True
                        break
                problem = problem or ("" if whole or left else "the stream ended without [DONE]")
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        problem = f"{type(error).__name__}: {error}"[:300]
    now = time.perf_counter()
    return Outcome(body, due - began, now - due, first, tokens, "".join(text), problem, left, cached)


def _words(choice: dict[str, Any]) -> str:
    said = choice.get("text") if "text" in choice else (choice.get("delta") or {}).get("content")
    return said or ""


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    asked["target"]["bodies"] = tuple(asked["target"]["bodies"])
    for one in asyncio.run(sent(Load(**asked | {"target": Target(**asked["target"])}))):
        print(json.dumps(asdict(one)))
