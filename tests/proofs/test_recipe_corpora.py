from typing import Any, cast

import numpy as np

from tests.proofs.recipe_corpora import RecipeCorpus


class Questions:
    """As much of a study as an exam looks at."""

    def __init__(self, *texts: str) -> None:
        self._texts = texts

    def questions(self) -> list[str]:
        return list(self._texts)

    def select(self, places: "np.ndarray[Any, Any]") -> "Questions":
        return Questions(*(self._texts[place] for place in places))


def test_an_exam_asks_nothing_that_was_trained_on() -> None:
    """In no other case, punctuation or spacing either."""
    exam = Questions("Who runs the ward?", "what is  the price", "Where is the key?", "Who runs the ward?")
    about = RecipeCorpus("any", cast(Any, None), cast(Any, None), cast(Any, exam), ())
    trained_on = Questions("What is the price?", "Where is the lock?")
    assert about.unseen(cast(Any, trained_on)).questions() == [
        "Who runs the ward?",
        "Where is the key?",
        "Who runs the ward?",
    ]
