"""What the gateway asks of whatever computes: a model in this process, or servers behind HTTP."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from cartridge_core.serving.cache import CacheCounts, Resident
from cartridge_core.serving.composition import Wanted
from cartridge_core.serving.resolver import ResolvedCartridge
from cartridge_core.serving.sampling_params import SamplingParams


@dataclass(frozen=True)
class GenerationRequest:
    """One prompt to answer, rendered and resolved."""

    request_id: str
    tenant: str
    prompt_token_ids: tuple[int, ...]
    """What follows the Cartridges; everything, BOS included, where there is none."""
    sampling: SamplingParams
    cartridges: tuple[ResolvedCartridge, ...] = ()
    """What stands in front, in order: nothing, one Cartridge, or several that are composed."""
    n: int = 1
    """Answers to write."""
    whole: bool = False
    """Whether nobody reads along, so that one piece an answer will do."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of the request as the client sent them; only names that the engine's `features` hold."""
    trace_headers: Mapping[str, str] = field(default_factory=dict)
    """Headers (`traceparent`) for a server behind HTTP, so that its spans join the request's trace."""

    @property
    def cartridge_tokens(self) -> int:
        """Virtual tokens in front of the prompt, which is also the position of the prompt's first token."""
        return sum(cartridge.num_tokens for cartridge in self.cartridges)


@dataclass(frozen=True)
class TokenLogprob:
    """A token taken, and the likeliest ones at its place. Log-probs are those of temperature 1."""

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()
    """Text and log-prob, likeliest first."""


@dataclass(frozen=True)
class ToolCall:
    """A function that the model wants called."""

    id: str
    name: str
    arguments: str
    """JSON."""


FinishReason = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True)
class Piece:
    """What came of one answer since its last piece."""

    text: str
    index: int = 0
    """Which of the request's answers."""
    num_tokens: int = 1
    """Tokens written since the last piece, an end token included."""
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    """Set on an answer's last piece."""
    tool_call: ToolCall | None = None
    """What the whole answer is, where it is a call."""


@dataclass(frozen=True)
class EngineHealth:
    """How an engine is doing."""

    ready: bool
    reason: str = ""
    """Why it is not ready."""
    running: int = 0
    """Answers being written."""
    waiting: int = 0
    """Answers not begun."""


class Engine(Protocol):
    """Writes answers behind Cartridges.

    The gateway renders, resolves and counts; an engine loads and computes. It may be asked about any number of requests
    at once.
    """

    @property
    def features(self) -> frozenset[str]:
        """Names of request fields beyond `SamplingParams` that it understands, such as `response_format`."""
        ...

    async def start(self) -> None:
        """Get ready; called once, before anything else."""
        ...

    async def close(self) -> None:
        """Stop; answers that are still being written fail with `EngineError`."""
        ...

    def generate(self, request: GenerationRequest) -> AsyncGenerator[Piece, None]:
        """Write the answers, piece by piece; closing or cancelling the iterator aborts them.

        Raises:
            NotLoadedError, ArtifactUnavailableError, DamagedCartridgeError: Before the first piece.
            OverloadedError: Too many wait, before the first piece.
            EngineError: It failed, possibly in the middle.
        """
        ...

    async def health(self) -> EngineHealth:
        """How it is doing."""
        ...

    async def load(self, wanted: Wanted) -> None:
        """Make a Cartridge or a composition ready before anybody asks for it."""
        ...

    async def pin(self, wanted: Wanted, pinned: bool) -> None:
        """Keep it ready whatever comes, or no longer."""
        ...

    async def unload(self, digest: str) -> None:
        """Let a Cartridge and every composition with it go, or a composition alone.

        Raises:
            UnknownModelError: It is not ready.
        """
        ...

    async def held(self) -> frozenset[str]:
        """Digests of all that it has or will have: in memory, as files on its machine, or to be kept."""
        ...

    async def erase(self, cartridge: ResolvedCartridge) -> None:
        """Let a Cartridge that may not be served any longer go from memory and from the machine's disk, pinned or not,
        and every composition with it from memory.

        What is in use stays until it is asked again, and `held` tells of it.
        """
        ...

    async def residents(self) -> Sequence[Resident]:
        """Cartridges and compositions that are ready."""
        ...

    def cache_counts(self) -> CacheCounts:
        """Hits, loads and evictions so far."""
        ...
