"""The embedded engine: a transformers model in this process behind the same gateway."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, aclosing, suppress
from dataclasses import dataclass

from cartridge_core.compose import compose
from cartridge_core.inference.prefix import empty_prefix
from cartridge_core.models import BaseModel
from cartridge_core.prefix_kv import PrefixKV
from cartridge_core.serving.cache import CacheCounts, CartridgeCache, Resident
from cartridge_core.serving.composition import Wanted, digests_of, parts_of, together
from cartridge_core.serving.engine import EngineHealth, GenerationRequest, Piece
from cartridge_core.serving.errors import ContextLengthError, EngineError, OverloadedError, UnknownModelError
from cartridge_core.serving.fetching import copies_here, erased_here, fetch_cartridge
from cartridge_core.serving.resolver import ResolvedCartridge
from cartridge_core.serving.scheduler import Answer, Scheduler
from cartridge_core.serving.text_stream import TextStream
from cartridge_core.settings import Settings
from cartridge_core.stages.local_copies import LocalCopies


@dataclass(frozen=True)
class LocalEngineConfig:
    """Bounds of the embedded engine."""

    cache_bytes: int = 1 << 30
    """Most bytes of loaded Cartridges."""
    max_running: int = 32
    """Answers written at once."""
    max_waiting: int = 256
    """Answers that may wait; more are refused."""
    load_wait_s: float = 10.0
    """How long a request waits for its Cartridge before it is told to come back."""


class LocalEngine:
    """Answers with a base model in this process. Belongs to one event loop.

    Args:
        base: The model.
        settings: Name the artifact store and where copies lie on this machine.
        config: Bounds.
    """

    features: frozenset[str] = frozenset()

    def __init__(self, base: BaseModel, settings: Settings, config: LocalEngineConfig | None = None) -> None:
        self._base, self._config = base, config or LocalEngineConfig()
        self._settings, self._copies = settings, LocalCopies(settings)
        self._empty = empty_prefix(base)
        self._per_token = (
            sum(2 * spec.num_kv_heads * spec.head_dim for spec in base.layer_specs if spec.has_kv) * base.dtype.itemsize
        )
        self.cache: CartridgeCache[PrefixKV] = CartridgeCache(
            self._load, self._size, self._config.cache_bytes, self._config.load_wait_s
        )
        self._scheduler = Scheduler(base, self._config.max_running)

    async def start(self) -> None:
        """Start the computing thread."""
        self._scheduler.start()

    async def close(self) -> None:
        """Stop it; answers that are still being written fail."""
        self._scheduler.close()
        if self._scheduler.is_alive():
            await asyncio.to_thread(self._scheduler.join)
        self.cache.close()

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Piece, None]:
        """See `Engine`."""
        self._check(request)
        async with AsyncExitStack() as stack:
            prefix, group = self._empty, ""
            if request.cartridges:
                wanted = together(request.cartridges)
                prefix, group = await stack.enter_async_context(self.cache.lease(wanted)), wanted.digest
            pieces = await stack.enter_async_context(aclosing(self._pieces(request, prefix, group)))
            async for piece in pieces:
                yield piece

    async def _pieces(self, request: GenerationRequest, prefix: PrefixKV, group: str) -> AsyncGenerator[Piece, None]:
        # Not before: while a Cartridge is loaded many may gather.
        if self._scheduler.waiting + request.n > self._config.max_waiting:
            raise OverloadedError(
                f"{self._scheduler.waiting} answers are waiting already.", "Ask again shortly.", retry_after=1.0
            )
        loop, queue = asyncio.get_running_loop(), asyncio.Queue[Piece | EngineError]()

        def deliver(piece: Piece | EngineError) -> None:
            loop.call_soon_threadsafe(queue.put_nowait, piece)

        answers = [
            Answer(group, prefix, request.prompt_token_ids, request.sampling, self._text(request), index, deliver)
            for index in range(request.n)
        ]
        self._scheduler.submit(answers)
        try:
            unfinished = request.n
            while unfinished:
                piece = await queue.get()
                if isinstance(piece, EngineError):
                    raise piece
                unfinished -= piece.finish_reason is not None
                yield piece
        finally:
            for answer in answers:
                answer.cancelled = True

    async def health(self) -> EngineHealth:
        """See `Engine`."""
        scheduler = self._scheduler
        alive = scheduler.is_alive()
        reason = "" if alive else scheduler.failure or "not started"
        return EngineHealth(alive, reason, scheduler.running, scheduler.waiting)

    async def load(self, wanted: Wanted) -> None:
        """See `Engine`."""
        await self.cache.load(wanted)

    async def pin(self, wanted: Wanted, pinned: bool) -> None:
        """See `Engine`."""
        await self.cache.pin(wanted, pinned)
        for part in parts_of(wanted):
            self._copies.pin(part.digest, pinned)

    async def unload(self, digest: str) -> None:
        """See `Engine`."""
        self.cache.unload(digest)
        self._copies.pin(digest, False)

    async def held(self) -> frozenset[str]:
        """See `Engine`."""
        resident = (digests_of(one.cartridge) for one in self.cache.residents())
        return copies_here(self._settings).union(*resident)

    async def erase(self, cartridge: ResolvedCartridge) -> None:
        """See `Engine`."""
        with suppress(UnknownModelError):  # its files alone may be here
            self.cache.unload(cartridge.digest)
        await asyncio.to_thread(erased_here, self._copies, self._settings, cartridge.digest)

    async def residents(self) -> Sequence[Resident]:
        """See `Engine`."""
        return self.cache.residents()

    def cache_counts(self) -> CacheCounts:
        """See `Engine`."""
        return self.cache.counts

    def _text(self, request: GenerationRequest) -> TextStream:
        return TextStream(self._base.tokenizer, request.sampling.stop)

    def _check(self, request: GenerationRequest) -> None:
        if not self._scheduler.is_alive():
            raise EngineError("The engine has stopped.", self._scheduler.failure or "", retry_after=1.0)
        needed = request.cartridge_tokens + len(request.prompt_token_ids) + request.sampling.max_tokens
        if needed > self._base.max_positions or not request.prompt_token_ids:
            raise ContextLengthError(
                f"{needed} tokens with Cartridge, prompt and answer; {self._base.identity.id} takes "
                f"{self._base.max_positions} in all, of which the prompt is at least one."
            )

    def _load(self, wanted: Wanted) -> PrefixKV:
        loaded = [fetch_cartridge(self._copies, part) for part in parts_of(wanted)]
        for cartridge in loaded:
            cartridge.check_base_model(self._base.identity)
        return compose(loaded).to(self._base.device, self._base.dtype)

    def _size(self, wanted: Wanted) -> int:
        return self._per_token * wanted.num_tokens
