"""Several Cartridges in front of one prompt, and when that is allowed."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from cartridge_core.catalog import CompositionEntry, composition_digest
from cartridge_core.serving.errors import BadRequestError, CompositionError, CompositionNotEvaluatedError
from cartridge_core.serving.model_name import CorpusReference
from cartridge_core.serving.resolver import ResolvedCartridge, Resolver

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


Wanted = ResolvedCartridge | Composition
"""What is loaded as one: a Cartridge, or several that are composed."""


def together(parts: Sequence[ResolvedCartridge]) -> Wanted:
    """What stands in front of a prompt, at least one, as what is loaded as one."""
    return parts[0] if len(parts) == 1 else Composition(tuple(parts))


def parts_of(wanted: Wanted) -> tuple[ResolvedCartridge, ...]:
    """The Cartridges in it, in order."""
    return wanted.parts if isinstance(wanted, Composition) else (wanted,)


def digests_of(wanted: Wanted) -> frozenset[str]:
    """Its own, and those of the Cartridges in it."""
    return frozenset((wanted.digest, *(part.digest for part in parts_of(wanted))))


class Compositions:
    """Finds compositions that may be served.

    Args:
        resolver: Knows Cartridges and evaluations.
        allowed: Whether the operator has switched them on.
    """

    def __init__(self, resolver: Resolver, allowed: bool) -> None:
        self._resolver, self._allowed = resolver, allowed

    async def find(
        self, tenant: str, references: tuple[CorpusReference, ...], *, gone: bool = False
    ) -> tuple[Composition, CompositionEntry | None]:
        """The Cartridges that a tenant named, and what the evaluation of them said.

        Args:
            tenant: Whose.
            references: Their names, in order.
            gone: Also such as may not be served any longer, by their status or their evaluation, for who lets them go.

        Raises:
            CompositionError: Compositions are switched off.
            BadRequestError: There are too many.
            CompositionNotEvaluatedError: Nobody has measured them in this order, or they failed.
            ServingError: As the resolver raises about one of them.
        """
        if not self._allowed:
            raise CompositionError(
                f"{'+'.join(map(str, references))!r} composes {len(references)} Cartridges, which this gateway does "
                "not do.",
                "Name one corpus.",
                param="model",
            )
        if len(references) > MOST_PARTS:
            raise BadRequestError(f"More than {MOST_PARTS} Cartridges are named.", "Name fewer.", param="model")
        composition = Composition(tuple([await self._resolver.resolve(tenant, one, gone=gone) for one in references]))
        evaluation = await self._resolver.composition(tenant, tuple(part.digest for part in composition.parts))
        if not gone:
            composition.check(evaluation)
        return composition, evaluation


def _sum(numbers: Iterable[int | None]) -> int | None:
    """The sum; None where a number is not known."""
    known = list(numbers)
    return None if None in known else sum(number for number in known if number is not None)
