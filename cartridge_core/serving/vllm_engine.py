"""vLLM servers as the gateway's engine, spoken to over HTTP alone."""

import logging
from collections import Counter
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass

from cartridge_core.serving.attachment import attachment_key
from cartridge_core.serving.cache import CacheCounts, Resident
from cartridge_core.serving.composition import Wanted, parts_of, together
from cartridge_core.serving.engine import EngineHealth, GenerationRequest, Piece
from cartridge_core.serving.errors import EngineError, OverloadedError
from cartridge_core.serving.replica import Replica
from cartridge_core.serving.replicas import Replicas
from cartridge_core.serving.resolver import ResolvedCartridge
from cartridge_core.serving.vllm_answer import AnswerReader, CartridgeMissedError
from cartridge_core.serving.vllm_body import COMPLETIONS, Bodies
from cartridge_core.serving.vllm_errands import Errands
from cartridge_core.settings import Settings

log = logging.getLogger("cartridge.gateway")


@dataclass(frozen=True)
class VllmConfig:
    """Which servers, and their bounds."""

    urls: tuple[str, ...]
    """Addresses of the servers that `cartridge engine` started."""
    max_outstanding: int = 1024
    """Answers under way at each; more are refused."""
    timeout_s: float = 600.0
    """Seconds without a word after which an answer is given up."""


class VllmEngine:
    """Answers with the base model of vLLM servers. Belongs to one event loop.

    Args:
        model: The base model's id, under which they serve it.
        window: Longest sequence, in tokens.
        settings: Hold the key that attachments are signed with.
        config: Which servers.

    Raises:
        SettingsError: There is no key.
    """

    features = frozenset({"tools", "response_format", "frequency_penalty", "presence_penalty", "logit_bias"})

    def __init__(self, model: str, window: int, settings: Settings, config: VllmConfig) -> None:
        self._bodies = Bodies(model, attachment_key(settings))
        servers = [Replica(number, url, config.timeout_s) for number, url in enumerate(config.urls, 1)]
        self._replicas = Replicas(servers, model, window, config.max_outstanding)
        self._errands = Errands(self._replicas, self._bodies)
        self._in_use: Counter[str] = Counter()

    async def start(self) -> None:
        """See `Engine`. Servers may be missing yet; they are used once they are there."""
        await self._replicas.start()
        self._errands.start()

    async def close(self) -> None:
        """See `Engine`."""
        await self._errands.close()
        await self._replicas.close()

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Piece, None]:
        """See `Engine`."""
        front = together(request.cartridges).digest if request.cartridges else ""
        replica, failed = self._replicas.choose(front, request.n), None
        while True:
            begun = False
            try:
                async with aclosing(self._ask(replica, request)) as pieces:
                    async for piece in pieces:
                        begun = True
                        yield piece
                return
            except (EngineError, OverloadedError):
                self._replicas.hurry()
                others = [other for other in self._replicas.well() if other is not replica]
                # Once: a request that ends one server after another must not end them all.
                if begun or failed is not None or not others:
                    raise
            failed = replica
            replica = self._replicas.choose(front, request.n, instead_of=failed)

    async def _ask(self, replica: Replica, request: GenerationRequest) -> AsyncGenerator[Piece, None]:
        # A stream says at its end only whether the Cartridge was in front. So the first answer is looked at as a whole.
        whole = request.whole or (bool(request.cartridges) and not replica.served)
        reader = AnswerReader(request.cartridge_tokens, request.sampling.logprobs)
        body = self._bodies.completion(request, whole)
        with replica.busy(request.n), self._using(request, replica):
            async with replica.post(self._replicas.session, COMPLETIONS, body, request.trace_headers) as content:
                if whole:
                    for piece in reader.whole(await content.read()):
                        yield piece
                else:
                    async for piece in reader.stream(content.iter_any()):
                        yield piece
        if request.cartridges:
            self._errands.answered(replica, together(request.cartridges))

    @contextmanager
    def _using(self, request: GenerationRequest, replica: Replica) -> Iterator[None]:
        digests = [together(request.cartridges).digest] if request.cartridges else []
        self._in_use.update(digests)
        try:
            yield
        except CartridgeMissedError as error:
            fields = {"engine": replica.number, "cause": str(error)}
            log.error("an engine ignores Cartridges", extra={"fields": fields})
            replica.leave_out("answered without the Cartridge that it was given")
            raise
        finally:
            self._in_use.subtract(digests)

    async def health(self) -> EngineHealth:
        """See `Engine`."""
        running = sum(replica.outstanding for replica in self._replicas.all)
        problems = [f"engine {one.number} {one.problem}" for one in self._replicas.all if one.problem is not None]
        ready = bool(self._replicas.well())
        return EngineHealth(ready, "" if ready else "; ".join(problems), running)

    async def load(self, wanted: Wanted) -> None:
        """See `Engine`. It is loaded at every server."""
        await self._errands.load(wanted)

    async def pin(self, wanted: Wanted, pinned: bool) -> None:
        """See `Engine`. A pin holds at every server."""
        await self._errands.pin(wanted, pinned)

    async def unload(self, digest: str) -> None:
        """See `Engine`. It is let go at every server."""
        await self._errands.unload(digest)

    async def held(self) -> frozenset[str]:
        """See `Engine`. Of the servers that can be used, whichever gateway they got it from."""
        return self._errands.held()

    async def erase(self, cartridge: ResolvedCartridge) -> None:
        """See `Engine`. A server that is away tells of it when it is back."""
        await self._errands.erase(cartridge)

    async def residents(self) -> Sequence[Resident]:
        """See `Engine`. Those that this gateway has used; which of them an engine keeps is its own decision."""
        well = self._replicas.well()
        sizes = {entry["digest"]: int(entry["num_bytes"]) for one in well for entry in one.described["cartridges"]}
        return [
            Resident(
                wanted,
                sum(sizes.get(part.digest, 0) for part in parts_of(wanted)),
                digest in self._errands.pins,
                self._in_use[digest],
            )
            for digest, wanted in self._errands.known.items()
            if any(digest in replica.served for replica in well)
        ]

    def cache_counts(self) -> CacheCounts:
        """See `Engine`. As the servers counted some seconds ago: files found, fetched, and those that failed."""
        said = [replica.described for replica in self._replicas.all if replica.described]
        fetched, failed = (sum(int(one[name]) for one in said) for name in ("fetches", "failed_fetches"))
        return CacheCounts(
            hits=sum(int(one["hits"]) for one in said),
            misses=fetched + failed,
            loads=fetched,
            failed_loads=failed,
            resident_bytes=sum(int(entry["num_bytes"]) for one in said for entry in one["cartridges"]),
        )
