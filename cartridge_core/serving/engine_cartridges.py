"""Cartridges in a vLLM worker's host memory: read from this machine's copy, verified, cut to the worker's heads."""

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

import torch
from torch import Tensor

from cartridge_core.cartridge import Cartridge
from cartridge_core.errors import ArtifactError
from cartridge_core.serving.kv_blocks import local_heads
from cartridge_core.serving.residency import Front
from cartridge_core.settings import Settings
from cartridge_core.stages.ask import cache_folder

_LOADS_AT_ONCE = 2


@dataclass(frozen=True)
class LayerShape:
    """What one attention layer of this worker holds."""

    index: int
    """Of the decoder layer."""
    num_kv_heads: int
    """In this worker."""
    head_dim: int
    dtype: torch.dtype
    """In which keys and values are handed to the layer."""


@dataclass(frozen=True)
class Shard:
    """One worker's part of a front: per layer name keys and values, `[num_tokens, local heads, head_dim]`."""

    layers: Mapping[str, tuple[Tensor, Tensor]]


class EngineCartridges:
    """A worker's Cartridges; what stays and what goes is the scheduler's decision (`Residency`).

    Args:
        settings: Name the folder of this machine's copies.
        layers: The worker's attention layers by name.
        rank: Of the worker among those that share each layer.
        ranks: Their number.
        pinned: Whether to hold them in page-locked memory, from where a GPU copies without waiting.
    """

    def __init__(
        self, settings: Settings, layers: Mapping[str, LayerShape], rank: int, ranks: int, pinned: bool
    ) -> None:
        self._settings, self._layers = settings, layers
        self._rank, self._ranks, self._pinned = rank, ranks, pinned
        self._held: dict[Front, Future[Shard]] = {}
        self._threads = ThreadPoolExecutor(_LOADS_AT_ONCE, thread_name_prefix="cartridge-load")

    def load(self, tenant: str, front: Front) -> "Future[Shard]":
        """Begin to load a front, if it is not there."""
        found = self._held.get(front)
        if found is None or (found.done() and found.exception() is not None):
            found = self._held[front] = self._threads.submit(self._read, tenant, front)
        return found

    def shard(self, front: Front) -> Shard:
        """A front that is there."""
        return self._held[front].result(timeout=0)

    def drop(self, front: Front) -> None:
        """Let a front go."""
        self._held.pop(front, None)

    @staticmethod
    def wait(loads: "list[Future[Shard]]", seconds: float) -> None:
        """Wait until one of these loads has ended, or so long."""
        wait(loads, seconds, return_when="FIRST_COMPLETED")

    def close(self) -> None:
        """Stop loading and drop everything."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._held.clear()

    def _read(self, tenant: str, front: Front) -> Shard:
        (digest,) = front
        cartridge = Cartridge.load(cache_folder(self._settings, digest))
        if cartridge.digest != digest or cartridge.manifest.tenant != tenant:
            raise ArtifactError(f"The copy of Cartridge {digest[:12]} holds {cartridge.digest[:12]}.")
        if not cartridge.publishable():
            raise ArtifactError(f"Cartridge {digest[:12]} does not end where a user's first token would start.")
        return self._cut(cartridge)

    def _cut(self, cartridge: Cartridge) -> Shard:
        prefix, layers = cartridge.prefix(), {}
        for name, shape in self._layers.items():
            there = shape.index < len(prefix.keys)
            layers[name] = (
                self._side(name, shape, prefix.keys[shape.index] if there else None),
                self._side(name, shape, prefix.values[shape.index] if there else None),
            )
        return Shard(layers)

    def _side(self, name: str, shape: LayerShape, side: Tensor | None) -> Tensor:
        heads = None if side is None else side[local_heads(side.shape[0], self._rank, self._ranks)]
        if heads is None or (heads.shape[0], heads.shape[2]) != (shape.num_kv_heads, shape.head_dim):
            raise ArtifactError(
                f"{name} has {shape.num_kv_heads} KV heads of {shape.head_dim} in this worker, the Cartridge "
                f"{'none' if heads is None else f'{heads.shape[0]} of {heads.shape[2]}'}.",
                "Serve it with the base model that it was built for.",
            )
        held = torch.empty((heads.shape[1], heads.shape[0], heads.shape[2]), dtype=shape.dtype, pin_memory=self._pinned)
        return held.copy_(heads.transpose(0, 1))
