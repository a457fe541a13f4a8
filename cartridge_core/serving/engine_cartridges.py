"""Cartridges in a vLLM worker's host memory: read from this machine's copy, verified, cut to the worker's heads."""

from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cartridge_core.cartridge import Cartridge
from cartridge_core.compose import compose
from cartridge_core.errors import ArtifactError
from cartridge_core.manifest import CartridgeManifest, read_manifest
from cartridge_core.serving.host_memory import HostMemory
from cartridge_core.serving.kv_blocks import local_heads
from cartridge_core.serving.residency import Front
from cartridge_core.settings import Settings
from cartridge_core.stages.local_copies import HeldCopy, LocalCopies
from cartridge_core.stored_tensors import described, exact_tensors
from cartridge_core.tensor_stream import stream_tensors

_LOADS_AT_ONCE = 2


@dataclass(frozen=True)
class LayerShape:
    """What one attention layer of this worker holds."""

    index: int
    """Of the decoder layer."""
    num_kv_heads: int
    """In this worker."""
    head_dim: int


@dataclass(frozen=True)
class Shard:
    """One worker's part of a front: per layer name keys and values, `[num_tokens, local heads, head_dim]`."""

    layers: Mapping[str, tuple[Tensor, Tensor]]


class EngineCartridges:
    """A worker's Cartridges; what stays and what goes is the scheduler's decision (`Residency`).

    Args:
        settings: Name the folder of this machine's copies.
        layers: The worker's attention layers by name.
        dtype: In which keys and values are handed to them.
        rank: Of the worker among those that share each layer.
        ranks: Their number.
        pinned: Whether to hold them in page-locked memory, from where a GPU copies without waiting.
    """

    def __init__(
        self,
        settings: Settings,
        layers: Mapping[str, LayerShape],
        dtype: torch.dtype,
        rank: int,
        ranks: int,
        pinned: bool,
    ) -> None:
        self._copies, self._layers, self._dtype = LocalCopies(settings), layers, dtype
        self._rank, self._ranks, self._pinned = rank, ranks, pinned
        self._held: dict[Front, Future[Shard]] = {}
        self._threads = ThreadPoolExecutor(_LOADS_AT_ONCE, thread_name_prefix="cartridge-load")

    def load(self, tenant: str, front: Front, num_tokens: int) -> "Future[Shard]":
        """Begin to load a front of so many tokens, if it is not there."""
        found = self._held.get(front)
        if found is None or (found.done() and found.exception() is not None):
            found = self._held[front] = self._threads.submit(self._read, tenant, front, num_tokens)
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

    def _read(self, tenant: str, front: Front, num_tokens: int) -> Shard:
        with ExitStack() as stack:
            folders = [stack.enter_context(self._copy(digest)).folder for digest in front]
            return self._read_folders(tenant, front, num_tokens, folders)

    def _copy(self, digest: str) -> HeldCopy:
        held = self._copies.hold(digest)
        if held is None:
            raise ArtifactError(f"There is no copy of Cartridge {digest[:12]} on this machine.")
        return held

    def _read_folders(self, tenant: str, front: Front, num_tokens: int, folders: list[Path]) -> Shard:
        manifests = [_manifest(folder, tenant, digest) for folder, digest in zip(folders, front, strict=True)]
        if (seen := sum(manifest.num_tokens for manifest in manifests)) != num_tokens:
            raise ArtifactError(f"{seen} tokens stand in front, {num_tokens} were attached.")
        if len(front) == 1 and manifests[0].quantization is None:
            shapes = {name: shape for name, (shape, _) in described(manifests[0]).items()}
            return self._cut(shapes, stream_tensors(folders[0], manifests[0]))
        prefix = compose([Cartridge.load(folder) for folder in folders])
        sides = exact_tensors(prefix.keys, prefix.values)
        return self._cut({name: tuple(side.shape) for name, side in sides.items()}, iter(sides.items()))

    def _cut(self, shapes: Mapping[str, tuple[int, ...]], sides: Iterator[tuple[str, Tensor]]) -> Shard:
        """This worker's heads of each layer's keys and values, copied to memory that stays."""
        mine = {name: local_heads(shape[0], self._rank, self._ranks) for name, shape in shapes.items()}
        cut = {name: (tokens, len(range(*mine[name].indices(h))), dim) for name, (h, tokens, dim) in shapes.items()}
        memory = HostMemory(cut.values(), self._dtype, self._pinned)
        return self._shard(
            {name: memory.take(cut[name]).copy_(side[mine[name]].transpose(0, 1)) for name, side in sides}
        )

    def _shard(self, sides: Mapping[str, Tensor]) -> Shard:
        layers = {}
        for name, shape in self._layers.items():
            key, value = (sides.get(f"layers.{shape.index}.{side}") for side in ("key", "value"))
            wanted = (shape.num_kv_heads, shape.head_dim)
            if key is None or value is None or key.shape[1:] != wanted or value.shape[1:] != wanted:
                raise ArtifactError(
                    f"{name} has {wanted[0]} KV heads of {wanted[1]} in this worker, the Cartridge "
                    f"{'none' if key is None else f'{key.shape[1]} of {key.shape[2]}'}.",
                    "Serve it with the base model that it was built for.",
                )
            layers[name] = (key, value)
        return Shard(layers)


def _manifest(folder: Path, tenant: str, digest: str) -> CartridgeManifest:
    manifest = read_manifest(folder)
    if manifest.digest != digest or manifest.tenant != tenant:
        raise ArtifactError(f"The copy of Cartridge {digest[:12]} holds {manifest.digest[:12]}.")
    if manifest.next_position != manifest.num_tokens:
        raise ArtifactError(f"Cartridge {digest[:12]} does not end where a user's first token would start.")
    return manifest
