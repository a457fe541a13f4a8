"""Several Cartridges in front of one prompt, and when that is allowed."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from cartridge_core.catalog import CompositionEntry, composition_digest
from cartridge_core.serving.errors import CompositionNotEvaluatedError
from cartridge_core.serving.resolver import ResolvedCartridge

MOST_PARTS = 8
"""Cartridges that may stand in front of one prompt."""


@dataclass(frozen=True)
class Composition:
    """Cartridges of one tenant and base model, one behind the other."""

    parts: tuple[ResolvedCartridge, ...]
    """In order."""

    @property
    def digest(self) -> str:
        """Identity of these Cartridges in this order."""
        return composition_digest([part.digest for part in self.parts])

    @property
    def tenant(self) -> str:
        """Whose they are."""
        return self.parts[0].tenant

    @property
    def corpus(self) -> str:
        """Names of the corpora."""
        return "+".join(part.corpus for part in self.parts)

    @property
    def name(self) -> str:
        """Corpus and version of each, as `model` takes them."""
        return "+".join(f"{part.corpus}:{part.version}" for part in self.parts)

    @property
    def num_tokens(self) -> int:
        """Virtual tokens of all."""
        return sum(part.num_tokens for part in self.parts)

    def check(self, evaluation: CompositionEntry | None) -> None:
        """Refuse a composition that nobody has measured, or that failed.

        Args:
            evaluation: The catalog's newest about it.

        Raises:
            CompositionNotEvaluatedError: The gate did not let it pass.
        """
        if evaluation is not None and evaluation.passed:
            return
        raise CompositionNotEvaluatedError(
            f"The composition {self.name} was not evaluated in this order."
            if evaluation is None
            else f"The composition {self.name} did not pass the gate: {evaluation.reason}",
            "Ask the corpora one by one; the operator evaluates compositions with `cartridge compose`.",
            param="model",
        )

    def describe(self, evaluation: CompositionEntry | None) -> dict[str, Any]:
        """What a caller may see, as JSON values."""
        return {
            "corpus": self.corpus,
            "cartridges": [part.describe() for part in self.parts],
            "cartridge_tokens": self.num_tokens,
            "kv_bytes": sum(part.kv_bytes for part in self.parts),
            "saved_tokens": _sum(part.saved_tokens for part in self.parts),
            "saved_bytes": _sum(part.saved_bytes for part in self.parts),
            "evaluation": None
            if evaluation is None
            else {
                "num_questions": evaluation.num_questions,
                "score": evaluation.score,
                "icl_score": evaluation.icl_score,
            },
        }


def _sum(numbers: Iterable[int | None]) -> int | None:
    """The sum; None where a number is not known."""
    known = list(numbers)
    return None if None in known else sum(number for number in known if number is not None)
