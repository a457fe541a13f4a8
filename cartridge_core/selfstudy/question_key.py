"""When two questions are the same question."""

import re
import unicodedata

_NOT_WORD = re.compile(r"[\W_]+")


def question_key(text: str) -> str:
    """The question without case, punctuation and spacing: equal keys are the same question.

    A question that has no letter or digit at all is its own key, so that such questions do not all fall together.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    return _NOT_WORD.sub(" ", folded).strip() or folded.strip()
