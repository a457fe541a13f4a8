"""The corpora as models, for GET /v1/models."""

from datetime import datetime
from typing import Any

from cartridge_core.serving.caller import Caller
from cartridge_core.serving.composition import Compositions
from cartridge_core.serving.model_name import CorpusReference, parse_model_name
from cartridge_core.serving.prompt import ServedModel
from cartridge_core.serving.resolver import ResolvedCartridge, Resolver


class ModelList:
    """What can be written as `model`.

    Args:
        model: The base model.
        resolver: Knows the corpora.
        compositions: Knows several together.
    """

    def __init__(self, model: ServedModel, resolver: Resolver, compositions: Compositions) -> None:
        self._model, self._resolver, self._compositions = model, resolver, compositions

    async def entries(self, caller: Caller) -> list[dict[str, Any]]:
        """The base model, then every corpus with each of its aliases.

        Raises:
            CatalogDownError: The catalog does not answer.
        """
        corpora = await self._resolver.corpora(caller.tenant)
        return [
            self._base(),
            *(
                _entry(str(CorpusReference(corpus.name, cartridge.alias)), cartridge, corpus.created)
                for corpus in corpora
                if caller.may_use(corpus.name)
                for cartridge in corpus.cartridges
            ),
        ]

    async def entry(self, caller: Caller, name: str) -> dict[str, Any]:
        """One of them, a version, or a composition.

        Raises:
            ServingError: It is none that this caller could ask.
        """
        references = parse_model_name(name, self._model.identity.id)
        for reference in references:
            caller.check(reference)
        if not references:
            return self._base()
        if len(references) > 1:
            return await self._composition(caller, references)
        (reference,) = references
        cartridge = await self._resolver.resolve(caller.tenant, reference)
        corpora = {corpus.name: corpus.created for corpus in await self._resolver.corpora(caller.tenant)}
        # The list is bounded, and holds what an alias points at.
        return _entry(str(reference), cartridge, corpora.get(reference.corpus, _registered(cartridge)))

    async def _composition(self, caller: Caller, references: tuple[CorpusReference, ...]) -> dict[str, Any]:
        composition, evaluation = await self._compositions.find(caller.tenant, references)
        return {
            "id": "+".join(map(str, references)),
            "object": "model",
            "created": max(map(_registered, composition.parts)),
            "owned_by": composition.tenant,
            "metadata": composition.describe(evaluation),
        }

    def _base(self) -> dict[str, Any]:
        identity = self._model.identity
        return {
            "id": identity.id,
            "object": "model",
            "created": 0,
            "owned_by": "base",
            "metadata": {"revision": identity.revision, "context_length": self._model.max_positions},
        }


def _registered(cartridge: ResolvedCartridge) -> int:
    """Unix time of its registration."""
    return int(datetime.fromisoformat(cartridge.created_at).timestamp())


def _entry(name: str, cartridge: ResolvedCartridge, created: int) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": cartridge.tenant,
        "metadata": cartridge.describe() | {"aliases": list(cartridge.aliases), "registered_at": cartridge.created_at},
    }
