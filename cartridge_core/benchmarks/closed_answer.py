"""Closed answers: the reply must hold the gold value and no other value of the asked attribute.

Values are matched whole, without regard to case, width or line breaks, and may have several words. A number is never
found inside another one ('12' is not in '123', '12.5', '-12' or 'B-12'). Where one value is part of another
('New York', 'New York City'), the longer one in the text is what the reply says. Words are what Unicode calls a word;
for scripts written without spaces use `free_answer` over a segmented text.
"""

import re
import unicodedata
from functools import lru_cache

from cartridge_core.benchmarks.benchmark import Benchmark, Verdict
from cartridge_core.benchmarks.interval import wilson
from cartridge_core.benchmarks.question import Question

_BEFORE = r"(?<!\w)"
_AFTER = r"(?!\w)"
_BEFORE_NUMBER = r"(?<![\w\-−])(?<!\d[.,:/])"
_AFTER_NUMBER = r"(?!\w)(?![.,:/\-]\d)"


def normalise(text: str) -> str:
    """Compatibility-composed and case-folded text, in which two spellings of the same characters are equal."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


def values_in(reply: str, values: tuple[str, ...]) -> set[str]:
    """Which of the values (normalised) the reply says, a value inside a longer one not counted."""
    text = normalise(reply)
    spans = {
        (match.start(), match.end(), value)
        for value in {" ".join(normalise(value).split()) for value in values}
        for match in _pattern(value).finditer(text)
    }
    return {
        value
        for start, end, value in spans
        if not any(low <= start and end <= high and high - low > end - start for low, high, _ in spans)
    }


def score(question: Question, reply: str) -> Verdict:
    """1 if the reply says the gold value and no other; unparsed if it says no value of the attribute at all."""
    said = values_in(reply, (question.answer, *question.distractors))
    gold = " ".join(normalise(question.answer).split())
    return Verdict(score=float(said == {gold}), parsed=bool(said))


@lru_cache(maxsize=4096)
def _pattern(value: str) -> re.Pattern[str]:
    before = _BEFORE_NUMBER if value[0].isdigit() else _BEFORE
    after = _AFTER_NUMBER if value[-1].isdigit() else _AFTER
    return re.compile(before + r"\s+".join(re.escape(word) for word in value.split()) + after)


CLOSED_ANSWER = Benchmark(
    name="closed_answer",
    metric="accuracy",
    score=score,
    interval=lambda scores, samples, seed: wilson(scores),
)
