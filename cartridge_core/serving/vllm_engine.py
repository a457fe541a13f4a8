"""vLLM servers as the gateway's engine, spoken to over HTTP alone."""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass

from cartridge_core.serving.attachment import Keeping, attachment_key
from cartridge_core.serving.cache import CacheCounts, Resident
from cartridge_core.serving.composition import Wanted, parts_of, together
from cartridge_core.serving.engine import EngineHealth, GenerationRequest, Piece
from cartridge_core.serving.errors import EngineError, OverloadedError, ServingError, UnknownModelError
from cartridge_core.serving.replica import Replica
from cartridge_core.serving.replicas import Replicas
from cartridge_core.serving.vllm_answer import AnswerReader, CartridgeMissedError
from cartridge_core.serving.vllm_body import Bodies
from cartridge_core.settings import Settings

log = logging.getLogger("cartridge.gateway")

_PATH = "/v1/completions"
_SETTLE_S = 1.0
"""How often a server's pins are looked after."""
_AGAIN_S = 30.0
"""A server that could not pin something is told again after so long."""


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
        self._known: dict[str, Wanted] = {}
        """What was answered with or loaded, by digest."""
        self._pins: dict[str, Wanted] = {}
        """What every server has to keep."""
        self._settling: list[asyncio.Task[None]] = []
        self._in_use: Counter[str] = Counter()

    async def start(self) -> None:
        """See `Engine`. Servers may be missing yet; they are used once they are there."""
        await self._replicas.start()
        self._settling = [asyncio.create_task(self._keep_settled(replica)) for replica in self._replicas.all]

    async def close(self) -> None:
        """See `Engine`."""
        for task in self._settling:
            task.cancel()
        await asyncio.gather(*self._settling, return_exceptions=True)
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
            async with replica.post(self._replicas.session, _PATH, body, request.trace_headers) as content:
                if whole:
                    for piece in reader.whole(await content.read()):
                        yield piece
                else:
                    async for piece in reader.stream(content.iter_any()):
                        yield piece
        if request.cartridges:
            self._answered(replica, together(request.cartridges))

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

    def _answered(self, replica: Replica, wanted: Wanted) -> None:
        replica.served.add(wanted.digest)
        self._known[wanted.digest] = wanted

    async def health(self) -> EngineHealth:
        """See `Engine`."""
        running = sum(replica.outstanding for replica in self._replicas.all)
        problems = [f"engine {one.number} {one.problem}" for one in self._replicas.all if one.problem is not None]
        ready = bool(self._replicas.well())
        return EngineHealth(ready, "" if ready else "; ".join(problems), running)

    async def load(self, wanted: Wanted) -> None:
        """See `Engine`. It is loaded at every server."""
        await self._everywhere(wanted, "cached")

    async def pin(self, wanted: Wanted, pinned: bool) -> None:
        """See `Engine`. A pin holds at every server; one that is away gets it, or is told to forget it, when it is
        back."""
        if not pinned:
            self._pins.pop(wanted.digest, None)
            if self._replicas.well():
                await self._everywhere(wanted, "unpin")
            return
        before = self._pins.setdefault(wanted.digest, wanted) is not wanted
        try:
            await self._everywhere(wanted, "pin")
        except ServingError:
            if not before:
                self._pins.pop(wanted.digest, None)
            raise

    async def unload(self, digest: str) -> None:
        """See `Engine`."""
        well = self._replicas.well()
        holding = [
            wanted
            for wanted in self._known.values()
            if digest in {wanted.digest, *(part.digest for part in parts_of(wanted))}
            if any(wanted.digest in replica.served for replica in well)
        ]
        if not holding:
            raise UnknownModelError(f"Cartridge {digest[:12]} is not in memory.", "List those that are.")
        for wanted in holding:
            self._pins.pop(wanted.digest, None)
            await self._everywhere(wanted, "drop")

    async def residents(self) -> Sequence[Resident]:
        """See `Engine`. Those that this gateway has used; which of them an engine keeps is its own decision."""
        well = self._replicas.well()
        sizes = {entry["digest"]: int(entry["num_bytes"]) for one in well for entry in one.described["cartridges"]}
        return [
            Resident(
                wanted,
                sum(sizes.get(part.digest, 0) for part in parts_of(wanted)),
                digest in self._pins,
                self._in_use[digest],
            )
            for digest, wanted in self._known.items()
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

    async def _everywhere(self, wanted: Wanted, residency: Keeping) -> None:
        """An errand to every server that can be used.

        Raises:
            EngineError: There is none.
            ServingError: None of them did it, for the reason of the first.
        """
        self._replicas.choose("")  # raises where there is none
        well = self._replicas.well()
        done = await asyncio.gather(*(self._tried(replica, wanted, residency) for replica in well))
        if None not in done:
            raise next(error for error in done if error is not None)

    async def _tried(self, replica: Replica, wanted: Wanted, residency: Keeping) -> ServingError | None:
        try:
            await self._errand(replica, wanted, residency)
        except ServingError as error:
            fields = {
                "engine": replica.number,
                "digest": wanted.digest[:12],
                "errand": residency,
                "problem": str(error),
            }
            log.warning("an engine did not do an errand", extra={"fields": fields})
            return error
        return None

    async def _errand(self, replica: Replica, wanted: Wanted, residency: Keeping) -> None:
        """Have one token written behind a Cartridge, for what that does to the server's memory."""
        with replica.busy(1):
            body = self._bodies.errand(wanted, residency)
            async with replica.post(self._replicas.session, _PATH, body) as content:
                AnswerReader(sum(part.num_tokens for part in parts_of(wanted)), None).whole(await content.read())
        self._answered(replica, wanted)
        if residency == "pin":
            replica.pinned.add(wanted.digest)
        elif residency != "cached":
            replica.pinned.discard(wanted.digest)
            replica.perhaps_pinned.discard(wanted.digest)
        if residency == "drop":
            replica.served.discard(wanted.digest)

    async def _keep_settled(self, replica: Replica) -> None:
        """Let a server keep what is pinned and nothing else, whenever it was away."""
        while True:
            await asyncio.sleep(_SETTLE_S)
            try:
                settled = await self._settled(replica)
            except Exception:  # whatever it is, pins have to be looked after again
                log.exception("an engine's pins could not be looked after")
                settled = False
            # One that went away gets them as soon as it is back; one that cannot have them is not pestered.
            if not settled and replica.problem is None:
                await asyncio.sleep(_AGAIN_S)

    async def _settled(self, replica: Replica) -> bool:
        """Tell a server what it does not know about pins; whether it knows all now."""
        if replica.problem is not None:
            return False
        told = replica.pinned | replica.perhaps_pinned
        owed: list[tuple[Wanted, Keeping]] = [(w, "pin") for d, w in self._pins.items() if d not in replica.pinned]
        owed += [(self._known[digest], "unpin") for digest in told if digest not in self._pins]
        for wanted, residency in owed:
            if await self._tried(replica, wanted, residency) is not None:
                return False
        return True
