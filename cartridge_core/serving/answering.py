"""From a request to pieces of an answer: name, Cartridge, prompt, engine; and what is done where a Cartridge fails."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace
from typing import Any, Literal

from cartridge_core.catalog import CompositionEntry
from cartridge_core.serving.caller import Caller
from cartridge_core.serving.composition import Composition, Compositions
from cartridge_core.serving.config import Fallback
from cartridge_core.serving.engine import Engine, GenerationRequest, Piece
from cartridge_core.serving.errors import BadRequestError, ContextLengthError, ServingError
from cartridge_core.serving.model_name import CorpusReference, parse_cartridge_names, parse_model_name
from cartridge_core.serving.openai_types import GenerationFields
from cartridge_core.serving.prompt import PromptKind, PromptRenderer, ServedModel
from cartridge_core.serving.resolver import ResolvedCartridge, Resolver
from cartridge_core.serving.sampling_params import SamplingParams
from cartridge_core.serving.tools import Calling
from cartridge_core.serving.tracing import begin, span


@dataclass(frozen=True)
class Front:
    """What stands in front of a prompt."""

    served: Literal["cartridge", "icl", "none", "base"]
    """A Cartridge; the corpus itself or nothing in its place; the base model as it was asked for."""
    references: tuple[CorpusReference, ...] = ()
    """What the caller named, in order; nothing for the base model."""
    cartridges: tuple[ResolvedCartridge, ...] = ()
    """What that is, in the same order; nothing where it could not be found."""
    evaluation: CompositionEntry | None = None
    """Of several Cartridges together."""
    token_ids: tuple[int, ...] = ()
    """Tokens in front of the user's own."""
    reason: ServingError | None = None
    """Why it is not the Cartridge."""

    def describe(self) -> dict[str, Any] | None:
        """What the reply says about it; None for the base model."""
        if not self.references:
            return None
        if not self.cartridges:
            said: dict[str, Any] = {"corpus": self.corpus}
        elif len(self.cartridges) == 1:
            said = self.cartridges[0].describe()
        else:
            said = Composition(self.cartridges).describe(self.evaluation)
        said["served"] = self.served
        if self.reason is not None:
            said["fallback_reason"] = self.reason.code
        return said

    @property
    def corpus(self) -> str:
        """Names of the corpora, a plus between them; empty for the base model."""
        return "+".join(reference.corpus for reference in self.references)

    @property
    def standing(self) -> tuple[ResolvedCartridge, ...]:
        """Cartridges that stand in front of the prompt."""
        return self.cartridges if self.served == "cartridge" else ()

    @property
    def cartridge_tokens(self) -> int:
        """Virtual tokens in front of the prompt."""
        return sum(cartridge.num_tokens for cartridge in self.standing)


@dataclass(frozen=True)
class Prompt:
    """What a user sent, in tokens, and how it is to be answered."""

    token_ids: tuple[int, ...]
    sampling: SamplingParams
    """`max_tokens` is what was asked for; 0 for all that fits."""
    extra: dict[str, Any]
    n: int
    whole: bool
    """Whether the answer is wanted in one piece."""
    kind: PromptKind
    calling: Calling | None = None
    """Functions that the answer may call."""


@dataclass
class Answering:
    """An answer under way."""

    front: Front
    pieces: AsyncGenerator[Piece, None]
    """The rest, behind `first`."""
    first: Piece

    async def close(self) -> None:
        """Stop the engine's work on it."""
        await self.pieces.aclose()


class Answerer:
    """Answers prompts of one base model.

    Args:
        model: The base model.
        resolver: Finds Cartridges.
        compositions: Finds several together.
        renderer: Makes tokens.
        engine: Computes.
        fallback: What is answered where a Cartridge cannot be served and the caller does not say.
    """

    def __init__(
        self,
        model: ServedModel,
        resolver: Resolver,
        compositions: Compositions,
        renderer: PromptRenderer,
        engine: Engine,
        fallback: Fallback,
    ) -> None:
        self._model, self._resolver, self._compositions = model, resolver, compositions
        self.renderer, self._engine, self._fallback = renderer, engine, fallback

    async def front(self, caller: Caller, body: GenerationFields, kind: PromptKind) -> Front:
        """What the request wants in front of its prompts.

        Args:
            caller: Who asks.
            body: The request.
            kind: What its prompts are.

        Raises:
            ServingError: It cannot have that.
        """
        references = self._references(body)
        if not references:
            return Front("base", token_ids=tuple(await self.renderer.nothing(kind)))
        for reference in references:
            caller.check(reference)
        if len(references) > 1:
            # Nothing stands in for a composition that is not known to work: metrics name only those that are.
            with span("resolve", {"cartridge.corpus": "+".join(reference.corpus for reference in references)}):
                composition, evaluation = await self._compositions.find(caller.tenant, references)
            return Front("cartridge", references, composition.parts, evaluation)
        try:
            with span("resolve", {"cartridge.corpus": references[0].corpus}):
                found = await self._resolver.resolve(caller.tenant, references[0])
            return Front("cartridge", references, (found,))
        except ServingError as refusal:
            return await self._instead(caller, body, Front("cartridge", references), refusal, kind)

    async def begin(
        self, caller: Caller, body: GenerationFields, front: Front, prompt: Prompt, request_id: str
    ) -> Answering:
        """Start an answer and wait for its first piece.

        Raises:
            ServingError: It does not come.
        """
        self._check_fields(prompt)
        try:
            return await self._begin(caller, front, prompt, request_id)
        except ServingError as refusal:
            if front.served != "cartridge":
                raise
            front = await self._instead(caller, body, front, refusal, prompt.kind)
            return await self._begin(caller, front, prompt, request_id)

    async def _begin(self, caller: Caller, front: Front, prompt: Prompt, request_id: str) -> Answering:
        work = begin("engine", {"cartridge.tenant": caller.tenant, "cartridge.tokens": front.cartridge_tokens})
        request = GenerationRequest(
            request_id=request_id,
            tenant=caller.tenant,
            prompt_token_ids=front.token_ids + prompt.token_ids,
            sampling=self._fitting(front, prompt),
            cartridges=front.standing,
            n=prompt.n,
            whole=prompt.whole,
            extra=prompt.extra,
            trace_headers={} if work is None else work.headers(),
        )
        pieces = self._engine.generate(request)
        if work is not None:
            work.tell({"gen_ai.usage.input_tokens": len(request.prompt_token_ids)})
            pieces = work.over(pieces)
        if prompt.calling is not None:
            pieces = prompt.calling.read(pieces)
        return Answering(front, pieces, await anext(pieces))

    def _references(self, body: GenerationFields) -> tuple[CorpusReference, ...]:
        base = self._model.identity.id
        named = parse_model_name(body.model, base)
        if body.cartridges is None:
            return named
        if named:
            raise BadRequestError(
                f"The model {body.model!r} and the field `cartridges` both name a Cartridge.",
                f"Send the base model, {base!r}, as model beside `cartridges`.",
                param="cartridges",
            )
        parts = [parse_cartridge_names(choice.id) for choice in body.cartridges]
        return tuple(reference for part in parts for reference in part)

    async def _instead(
        self, caller: Caller, body: GenerationFields, front: Front, refusal: ServingError, kind: PromptKind
    ) -> Front:
        """What stands in the Cartridge's place, if that is allowed; else the refusal is raised."""
        fallback = body.cartridge_fallback or self._fallback
        if not refusal.may_fall_back or fallback == "refuse" or not front.references:
            raise refusal
        if fallback == "none":
            token_ids = await self.renderer.nothing(kind)
        else:
            digests = [cartridge.corpus_digest for cartridge in front.cartridges] or [""] * len(front.references)
            names = [reference.corpus for reference in front.references]
            token_ids = await self.renderer.corpora(caller.tenant, list(zip(names, digests, strict=True)))
        return replace(front, served=fallback, token_ids=tuple(token_ids), reason=refusal)

    def _check_fields(self, prompt: Prompt) -> None:
        for name in (*prompt.extra, *(("tools",) if prompt.calling else ())):
            if name not in self._engine.features:
                raise BadRequestError(
                    f"This gateway's engine does not support {name!r}.",
                    "Leave it out.",
                    param=name,
                    code="unsupported_parameter",
                )

    def _fitting(self, front: Front, prompt: Prompt) -> SamplingParams:
        """How long the answer may be.

        Raises:
            ContextLengthError: It does not fit.
        """
        window, own = self._model.max_positions, len(prompt.token_ids)
        in_front = front.cartridge_tokens + len(front.token_ids)
        room = window - in_front - own
        wanted = prompt.sampling.max_tokens
        if room < max(1, wanted):
            raise ContextLengthError(
                f"This model's maximum context length is {window} tokens. However, you requested "
                f"{in_front + own + max(1, wanted)} tokens ({in_front} in front of the prompt, {own} in the prompt, "
                f"{max(1, wanted)} in the completion).",
                "Please reduce the length of the prompt or of the completion.",
                param="messages" if prompt.kind == "chat" else "prompt",
            )
        return replace(prompt.sampling, max_tokens=wanted or room)
