"""`make soak`: 200 callers stream from one gateway for ten minutes; no stream is lost and memory stays flat.

A stream counts as lost where it was refused, broke, or did not end as OpenAI's do. Some callers hang up in the middle
on purpose, and at the end the engine must have nothing left to do.

Memory is the resident memory of the gateway's process and its children (with the embedded engine the model's as well),
read at even intervals. The first third of the run is warm-up. It is flat where the median of the last third exceeds the
median of the middle third by no more than 2 %: a leak of a kilobyte a request shows, an allocator's steps do not.
"""

import argparse
import statistics
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import psutil
from rich.console import Console

from cartridge_core.proof import FOLDER, Bound, write_proof
from tests.proofs.gateway_process import CORPORA, answers_left, gateway_process, listening_on
from tests.proofs.http_load import Load, Outcome, Target, median, percentile, run_load

ASKED: dict[str, dict[str, float] | Bound] = {
    "streams_lost": {"at_most": 0},
    "streams_at_once": {"at_least": 200},
    "memory_growth": {"at_most": 0.02},
    "answers_left": {"at_most": 0},
}


class Memory(threading.Thread):
    """Reads a process's resident memory, its children's included.

    Args:
        process: Which; None reads nothing.
        every_s: Seconds between two readings.
    """

    def __init__(self, process: psutil.Process | None, every_s: float) -> None:
        super().__init__(daemon=True)
        self._process, self._every_s, self._over = process, every_s, threading.Event()
        self.megabytes: list[float] = []

    def run(self) -> None:
        """Read until told to stop."""
        while self._process is not None and not self._over.wait(self._every_s):
            try:
                all_of_it = [self._process, *self._process.children(recursive=True)]
                self.megabytes.append(sum(one.memory_info().rss for one in all_of_it) / 1e6)
            except psutil.NoSuchProcess:
                return

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Read while the block runs."""
        self.start()
        try:
            yield
        finally:
            self._over.set()
            self.join()


def growth(readings: Sequence[float]) -> float:
    """By which share the last third's median exceeds the middle third's; NaN for fewer than nine readings."""
    third = len(readings) // 3
    if third < 3:
        return float("nan")
    return statistics.median(readings[-third:]) / statistics.median(readings[third:-third]) - 1


def at_once(outcomes: Sequence[Outcome]) -> int:
    """Most streams that were under way at the same time."""
    changes = sorted(change for o in outcomes for change in ((o.at, 1), (o.at + o.seconds, -1)))
    most = now = 0
    for _, change in changes:
        now += change
        most = max(most, now)
    return most


def soak(
    url: str, process: psutil.Process | None, target: Target, seconds: float, callers: int, hang_up: float
) -> tuple[dict[str, float], list[float], list[str]]:
    """Load a gateway.

    Args:
        url: Its address.
        process: Whose memory is read; None leaves it unmeasured, which does not pass.
        target: What is asked.
        seconds: How long questions are asked.
        callers: Streams at once.
        hang_up: Share of streams that the caller leaves in the middle.

    Returns:
        Figures, megabytes over time, and what was wrong with lost streams.
    """
    memory = Memory(process, max(0.5, seconds / 120))
    with memory.reading():
        outcomes = run_load(Load(target, seconds, callers=callers, hang_up=hang_up))
    whole = [outcome for outcome in outcomes if not outcome.problem and not outcome.left]
    lost = [outcome for outcome in outcomes if outcome.problem]
    texts = [{outcome.text for outcome in whole if outcome.body == body} for body in range(len(target.bodies))]
    span = max((outcome.at + outcome.seconds for outcome in outcomes), default=float("nan"))
    figures = {
        "streams": float(len(outcomes)),
        "streams_lost": float(len(lost)),
        "streams_left_on_purpose": float(sum(outcome.left for outcome in outcomes)),
        "streams_at_once": float(at_once(outcomes)),
        "different_answers_to_one_question": float(max(map(len, texts))),
        "tokens_per_second": sum(outcome.tokens for outcome in whole) / span,
        "first_token_s_p50": median([outcome.first for outcome in whole]),
        "first_token_s_p99": percentile([outcome.first for outcome in whole], 0.99),
        "memory_mb_first": memory.megabytes[0] if memory.megabytes else float("nan"),
        "memory_mb_last": memory.megabytes[-1] if memory.megabytes else float("nan"),
        "memory_mb_most": max(memory.megabytes, default=float("nan")),
        "memory_growth": growth(memory.megabytes),
        "answers_left": answers_left(url),
    }
    return figures, memory.megabytes, sorted({outcome.problem for outcome in lost})[:10]


def questions(models: Sequence[str], tokens: int, key: str | None, url: str) -> Target:
    """Streamed greedy questions to each of these models."""
    bodies = tuple(
        {
            "model": model,
            "messages": [{"role": "user", "content": f"Which ward has Ada Lind, and since when? ({number})"}],
            "max_tokens": tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        for model in models
        for number in range(4)
    )
    headers = {"authorization": f"Bearer {key}"} if key else {}
    return Target(f"{url}/v1/chat/completions", bodies, headers)


def main() -> int:
    """Run it and write the proof; the exit code says whether it holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600, help="how long questions are asked")
    parser.add_argument("--callers", type=int, default=200, help="streams at once")
    parser.add_argument("--tokens", type=int, default=48, help="longest answer")
    parser.add_argument("--hang-up", type=float, default=0.02, help="share of streams left in the middle on purpose")
    parser.add_argument("--url", help="a gateway that runs already; one is started where nobody says")
    parser.add_argument("--model", action="append", help="what to ask it (with --url); may be given several times")
    parser.add_argument("--key", help="its API key (with --url)")
    parser.add_argument("--pid", type=int, help="its process (with --url); found by its port on this machine")
    parser.add_argument("--output", type=Path, default=FOLDER, help="folder of the report")
    options = parser.parse_args()
    if (options.url is None) != (options.model is None):
        parser.error("give --url and --model together")
    started, console = time.time(), Console()
    console.print(f"{options.callers} callers for {options.seconds:,.0f} s", style="dim")
    common = (options.seconds, options.callers, options.hang_up)
    if options.url:
        url = options.url.rstrip("/")
        process = psutil.Process(options.pid) if options.pid else listening_on(urlsplit(url).port or 80)
        target = questions(options.model, options.tokens, options.key, url)
        figures, readings, problems = soak(url, process, target, *common)
    else:
        with gateway_process(max_running=options.callers) as served:
            target = questions(CORPORA, options.tokens, None, served.url)
            figures, readings, problems = soak(served.url, served.process, target, *common)
    command = " ".join(["python -m tests.proofs.soak", *_without_key(sys.argv[1:])])
    extra = {"memory_mb": [round(one, 1) for one in readings], "problems": problems}
    proof = write_proof("soak", command, figures, ASKED, started, extra, options.output)
    return 0 if proof.ok else 1


def _without_key(arguments: list[str]) -> list[str]:
    return ["..." if before == "--key" else one for before, one in zip(["", *arguments], arguments, strict=False)]


if __name__ == "__main__":
    sys.exit(main())
