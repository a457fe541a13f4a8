"""Several vLLM servers: which one is asked, and which are left out."""

import asyncio
import hashlib
import logging
import math
from collections.abc import Sequence

import aiohttp

from cartridge_core.serving.errors import EngineError, OverloadedError
from cartridge_core.serving.replica import Replica

log = logging.getLogger("cartridge.gateway")

_LOOK_S = 2.0
"""How often servers are asked how they are."""
_SLACK = 1.25
"""How much more than its share of the answers a Cartridge's own server takes before another one helps."""
_ALWAYS = 4
"""So many answers it takes in any case: few cost a batch nothing, and a Cartridge in two memories costs one."""
_KEEP_ALIVE_S = 3.0
"""Less than vLLM's five: a connection must not be closed there while it is being used here."""


class Replicas:
    """The servers of one gateway. Belongs to one event loop.

    Args:
        replicas: At least one.
        model: Name of the base model that they have to serve.
        window: Tokens that a sequence has to hold.
        max_outstanding: Answers under way at each; more are refused.
    """

    def __init__(self, replicas: Sequence[Replica], model: str, window: int, max_outstanding: int) -> None:
        self.all = tuple(replicas)
        self._model, self._window, self._max_outstanding = model, window, max_outstanding
        self._session: aiohttp.ClientSession | None = None
        self._watch: asyncio.Task[None] | None = None
        self._hurry = asyncio.Event()

    @property
    def session(self) -> aiohttp.ClientSession:
        """Connections to all of them.

        Raises:
            EngineError: It was not started, or was closed.
        """
        if self._session is None:
            raise EngineError("The engine has stopped.", retry_after=1.0)
        return self._session

    async def start(self) -> None:
        """Look at all of them once, and from then on every few seconds."""
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE_S)
        self._session = aiohttp.ClientSession(connector=connector, auto_decompress=False)
        await self._look()
        self._watch = asyncio.create_task(self._watching())

    async def close(self) -> None:
        """Cut all connections."""
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
        if self._session is not None:
            session, self._session = self._session, None
            await session.close()

    def well(self) -> list[Replica]:
        """Those that can be used."""
        return [replica for replica in self.all if replica.problem is None]

    def choose(self, digest: str, answers: int = 1, instead_of: Replica | None = None) -> Replica:
        """The server to ask.

        Requests of one Cartridge go to one server, which has it in memory, as long as that one does not carry much
        more than the others (rendezvous hashing with bounded loads); others go where the least is under way.

        Args:
            digest: Of the Cartridge; empty for none.
            answers: How many will be written.
            instead_of: One that has just failed.

        Raises:
            EngineError: None is well.
            OverloadedError: All have as much as they may.
        """
        well = [replica for replica in self.well() if replica is not instead_of]
        if not well:
            self._hurry.set()
            raise EngineError("No engine answers now.", "Ask again shortly.", retry_after=_LOOK_S)
        room = [replica for replica in well if replica.outstanding + answers <= self._max_outstanding]
        if not room:
            raise OverloadedError(
                f"{sum(replica.outstanding for replica in well)} answers are under way already.",
                "Ask again shortly.",
                retry_after=1.0,
            )
        least = min(room, key=lambda replica: replica.outstanding)
        if not digest:
            return least
        total = sum(replica.outstanding for replica in well) + answers
        bound = max(_ALWAYS, math.ceil(_SLACK * total / len(well)))
        ordered = sorted(room, key=lambda replica: _weight(digest, replica.url), reverse=True)
        return next((replica for replica in ordered if replica.outstanding < bound), least)

    def hurry(self) -> None:
        """Look at all of them now."""
        self._hurry.set()

    async def _watching(self) -> None:
        while True:
            try:
                await asyncio.wait_for(self._hurry.wait(), _LOOK_S)
                # Many requests may hurry at once.
                await asyncio.sleep(0.1)
            except TimeoutError:
                pass
            self._hurry.clear()
            try:
                await self._look()
            except Exception:  # whatever it is, servers have to be looked at again
                log.exception("engines could not be looked at")

    async def _look(self) -> None:
        before = [replica.problem for replica in self.all]
        await asyncio.gather(*(replica.look(self.session, self._model, self._window) for replica in self.all))
        for replica, was in zip(self.all, before, strict=True):
            if replica.problem == was:
                continue
            fields = {"engine": replica.number, "url": replica.url, "problem": replica.problem}
            if replica.problem is None:
                log.info("an engine can be used", extra={"fields": fields})
            else:
                log.error("an engine is left out", extra={"fields": fields})


def _weight(digest: str, url: str) -> bytes:
    return hashlib.blake2b(f"{digest} {url}".encode(), digest_size=8).digest()
