"""Which Cartridges a vLLM engine holds in host memory: decided by its scheduler alone, followed by all its workers.

Workers that each kept a cache of their own could disagree about what is there, and a step that one of them cannot do
stops all.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal

DEFAULT_CACHE_BYTES = 4 << 30
"""Most bytes of Cartridges in a worker's host memory where nobody says."""

Front = tuple[str, ...]
"""Digests of what stands in front of a prompt, in order; several are held as one composition."""


@dataclass
class _Held:
    num_bytes: int
    loading: int = 0
    """Requests that wait for the load."""
    resident: bool = False
    leaving: bool = False
    """Whether it goes once nobody waits for the load any more."""


class Residency:
    """Least recently used fronts go first; those being loaded and those pinned stay.

    Args:
        max_bytes: Most bytes of all fronts in one worker.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._held: OrderedDict[Front, _Held] = OrderedDict()
        self._pinned: set[Front] = set()

    @property
    def num_bytes(self) -> int:
        """Bytes that are taken, loads under way included."""
        return sum(held.num_bytes for held in self._held.values())

    def state(self, front: Front, num_bytes: int) -> Literal["resident", "loadable", "full", "never"]:
        """Whether a request can have a front.

        Returns:
            `resident`: at once. `loadable`: after a load, for which `begin` makes room. `full`: not now, all else is
            being loaded or pinned. `never`: it is larger than the room that pinned ones leave, or
            held in another size.
        """
        held = self._held.get(front)
        if held is not None and held.num_bytes != num_bytes:
            # A signed length that is not the Cartridge's own: its keys and values would not be where they belong.
            return "never"
        if held is not None:
            return "resident" if held.resident else "loadable"
        pinned = sum(other.num_bytes for name, other in self._held.items() if name in self._pinned)
        if num_bytes > self._max_bytes - pinned:
            return "never"
        stays = sum(o.num_bytes for name, o in self._held.items() if name in self._pinned or o.loading)
        return "full" if num_bytes > self._max_bytes - stays else "loadable"

    def touch(self, front: Front) -> None:
        """It was used just now."""
        if front in self._held:
            self._held.move_to_end(front)

    def begin(self, front: Front, num_bytes: int) -> list[Front]:
        """A request waits for a front that is `loadable`.

        Returns:
            What the workers have to let go first.
        """
        gone: list[Front] = []
        if front not in self._held:
            for name in [n for n, held in self._held.items() if not held.loading and n not in self._pinned]:
                if self.num_bytes + num_bytes <= self._max_bytes:
                    break
                del self._held[name]
                gone.append(name)
            self._held[front] = _Held(num_bytes)
        self._held[front].loading += 1
        self.touch(front)
        return gone

    def end(self, front: Front, loaded: bool) -> bool:
        """A request's load has ended in every worker.

        Returns:
            Whether it is held no longer, so that workers that have it have to let it go.
        """
        held = self._held[front]
        held.loading -= 1
        held.resident |= loaded
        if held.loading or (held.resident and not held.leaving):
            return False
        del self._held[front]
        return True

    def pin(self, front: Front, pinned: bool) -> None:
        """Keep a front whatever comes, or no longer."""
        if pinned:
            self._pinned.add(front)
            if front in self._held:
                self._held[front].leaving = False
        else:
            self._pinned.discard(front)

    def drop(self, front: Front) -> bool:
        """Let a front go, pinned or not: now, or once the requests that wait for its load have it.

        Returns:
            Whether the workers have to now.
        """
        self._pinned.discard(front)
        held = self._held.get(front)
        if held is None:
            return False
        if held.loading:
            held.leaving = True
            return False
        del self._held[front]
        return True

    def fronts_with(self, digest: str) -> list[Front]:
        """What is held or pinned and has a Cartridge in it."""
        return [front for front in {*self._held, *self._pinned} if digest in front]
