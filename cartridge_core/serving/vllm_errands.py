"""What vLLM servers are to do with Cartridges: load, keep, let go and erase, at every one of them."""

import asyncio
import logging

from cartridge_core.serving.attachment import IN_FRONT, Keeping
from cartridge_core.serving.composition import Wanted, digests_of, parts_of
from cartridge_core.serving.errors import ServingError, UnknownModelError
from cartridge_core.serving.replica import Replica
from cartridge_core.serving.replicas import Replicas
from cartridge_core.serving.resolver import ResolvedCartridge
from cartridge_core.serving.vllm_answer import AnswerReader
from cartridge_core.serving.vllm_body import COMPLETIONS, Bodies

log = logging.getLogger("cartridge.gateway")

_SETTLE_S = 1.0
"""How often a server's pins are looked after."""
_AGAIN_S = 30.0
"""A server that could not pin something is told again after so long."""


class Errands:
    """Errands to all servers of one gateway. Belongs to one event loop.

    Args:
        replicas: The servers.
        bodies: Makes requests.
    """

    def __init__(self, replicas: Replicas, bodies: Bodies) -> None:
        self._replicas, self._bodies = replicas, bodies
        self.known: dict[str, Wanted] = {}
        """What was answered with or loaded, by digest."""
        self.pins: dict[str, Wanted] = {}
        """What every server has to keep, by digest."""
        self._settling: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Look after the servers' pins from now on."""
        self._settling = [asyncio.create_task(self._keep_settled(replica)) for replica in self._replicas.all]

    async def close(self) -> None:
        """Stop that."""
        for task in self._settling:
            task.cancel()
        await asyncio.gather(*self._settling, return_exceptions=True)

    def answered(self, replica: Replica, wanted: Wanted) -> None:
        """A server was seen to have something in memory."""
        replica.served.add(wanted.digest)
        self.known[wanted.digest] = wanted

    async def load(self, wanted: Wanted) -> None:
        """Load it at every server.

        Raises:
            ServingError: None of them can.
        """
        await self._everywhere(wanted, "cached")

    async def pin(self, wanted: Wanted, pinned: bool) -> None:
        """Have every server keep it, or no longer; one that is away is told when it is back.

        Raises:
            ServingError: None of them can keep it; nothing is remembered then.
        """
        if not pinned:
            self.pins.pop(wanted.digest, None)
            if self._replicas.well():
                await self._everywhere(wanted, "unpin")
            return
        before = wanted.digest in self.pins
        # Now, so that a server that comes back meanwhile is told as well.
        self.pins[wanted.digest] = wanted
        try:
            await self._everywhere(wanted, "pin")
        except ServingError:
            if not before:
                self.pins.pop(wanted.digest, None)
            raise

    async def unload(self, digest: str) -> None:
        """Let a Cartridge and every composition with it go, or a composition alone.

        Raises:
            UnknownModelError: It is in no server's memory.
        """
        well = self._replicas.well()
        holding = [
            wanted
            for wanted in self.known.values()
            if digest in digests_of(wanted)
            if any(wanted.digest in replica.served for replica in well)
        ]
        if not holding:
            raise UnknownModelError(f"Cartridge {digest[:12]} is not in memory.", "List those that are.")
        for wanted in holding:
            self.pins.pop(wanted.digest, None)
            await self._everywhere(wanted, "drop")

    def held(self) -> frozenset[str]:
        """Digests of what the servers that can be used have, in memory or on disk, or will be told to keep."""
        kept = {digest for wanted in self.pins.values() for digest in digests_of(wanted)}
        return frozenset(kept.union(*(self._held_by(replica) for replica in self._replicas.well())))

    async def erase(self, cartridge: ResolvedCartridge) -> None:
        """Let a Cartridge go at every server that has it, compositions with it as well, from memory and from disk.

        What is in use there stays, and so does all at a server that is away or fails: `held` tells of it.
        """
        holding = [wanted.digest for wanted in self.known.values() if cartridge.digest in digests_of(wanted)]
        self.pins.pop(cartridge.digest, None)
        told = [replica for replica in self._replicas.well() if cartridge.digest in self._held_by(replica)]
        if any(await asyncio.gather(*(self._tried(replica, cartridge, "erase") for replica in told))):
            return
        for digest in {cartridge.digest, *holding}:
            self.known.pop(digest, None)
            for replica in self._replicas.all:
                for said in (replica.served, replica.pinned, replica.perhaps_pinned):
                    said.discard(digest)

    def _held_by(self, replica: Replica) -> set[str]:
        served = (self.known[digest] for digest in replica.served if digest in self.known)
        return {*replica.described.get("held", ()), *(digest for wanted in served for digest in digests_of(wanted))}

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
        replica.told_now.add(wanted.digest)
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
        finally:
            replica.told_now.discard(wanted.digest)
        return None

    async def _errand(self, replica: Replica, wanted: Wanted, residency: Keeping) -> None:
        """Have one token written, for what that does to a Cartridge in the server's memory."""
        in_front = sum(part.num_tokens for part in parts_of(wanted)) if residency in IN_FRONT else 0
        with replica.busy(1):
            body = self._bodies.errand(wanted, residency)
            async with replica.post(self._replicas.session, COMPLETIONS, body) as content:
                AnswerReader(in_front, None).whole(await content.read())
        if in_front:
            self.answered(replica, wanted)
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
        owed: list[tuple[Wanted, Keeping]] = [(w, "pin") for d, w in self.pins.items() if d not in replica.pinned]
        owed += [(self.known[digest], "unpin") for digest in told if digest not in self.pins]
        for wanted, residency in owed:
            # An errand under way says it already, and a second one could be overtaken by what is said next.
            if wanted.digest not in replica.told_now and await self._tried(replica, wanted, residency) is not None:
                return False
        return True
