"""Benchmarks: questions about a corpus and ways of judging replies. Everything here imports without torch."""

from cartridge_core.benchmarks.benchmark import Benchmark, Verdict
from cartridge_core.benchmarks.closed_answer import CLOSED_ANSWER
from cartridge_core.benchmarks.free_answer import FREE_ANSWER
from cartridge_core.benchmarks.interval import Interval
from cartridge_core.benchmarks.question import Question, load_questions, questions_digest, save_questions

BENCHMARKS: dict[str, Benchmark] = {
    "closed_answer": CLOSED_ANSWER,
    "free_answer": FREE_ANSWER,
}
"""Name to benchmark."""

__all__ = [
    "BENCHMARKS",
    "Benchmark",
    "Interval",
    "Question",
    "Verdict",
    "load_questions",
    "questions_digest",
    "save_questions",
]
