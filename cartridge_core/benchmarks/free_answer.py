"""Free answers: token F1 against the reference text, normalised as SQuAD does it (Rajpurkar et al., 2016).

The normalisation is the official script's, so that figures can be compared: lower case, ASCII punctuation removed,
English articles removed, split at white space.
"""

import re
import string
from collections import Counter

from cartridge_core.benchmarks.benchmark import Benchmark, Verdict
from cartridge_core.benchmarks.interval import bootstrap
from cartridge_core.benchmarks.question import Question

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def squad_tokens(text: str) -> list[str]:
    """The tokens that count."""
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def token_f1(reply: str, reference: str) -> float:
    """Harmonic mean of precision and recall over tokens with their counts; 1 if neither text has a token."""
    said, meant = squad_tokens(reply), squad_tokens(reference)
    if not said or not meant:
        return float(said == meant)
    shared = sum((Counter(said) & Counter(meant)).values())
    return 2 * shared / (len(said) + len(meant))


def score(question: Question, reply: str) -> Verdict:
    """Token F1 with the answer; a reply without a single token is unparsed and scores 0."""
    parsed = bool(squad_tokens(reply))
    return Verdict(score=token_f1(reply, question.answer) if parsed else 0.0, parsed=parsed)


FREE_ANSWER = Benchmark(name="free_answer", metric="F1", score=score, interval=bootstrap)
