"""Tensors of a large artifact, one after the other while the file's digest is taken: a cold load as fast as its hash.

`Cartridge.load` reads, hashes and checks one after the other, which is simple and takes the sum. Here another thread
hashes the very bytes that the caller copies, so that nothing is used which was not verified and no byte is read twice.
"""

import hashlib
import json
import math
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from cartridge_core.errors import ArtifactError
from cartridge_core.manifest import COPY_AGAIN, CartridgeManifest
from cartridge_core.stored_tensors import TENSORS_FILE, described

_BUFFERS = 4
"""Tensors between reading and the end of their hash; warm memory is several times faster than fresh."""
_MOST_HEADER = 100 << 20


def stream_tensors(folder: Path, manifest: CartridgeManifest) -> Iterator[tuple[str, Tensor]]:
    """The tensors of an exact Cartridge in the file's order.

    A tensor lies in a buffer that is used again: copy it before asking for the next. Nothing that came is to be trusted
    before the iterator has ended: only then is the digest known.

    Args:
        folder: Holds the file.
        manifest: What it holds; not quantised.

    Yields:
        Name and tensor `[num_kv_heads, num_tokens, head_dim]`, finite.

    Raises:
        ArtifactError: The file is missing, damaged, or not the one that the manifest describes.
    """
    path = folder / TENSORS_FILE
    try:
        with path.open("rb", buffering=0) as stream, ThreadPoolExecutor(1, thread_name_prefix="hash") as thread:
            hasher = hashlib.sha256()
            places = _places(path, stream, manifest, hasher)
            yield from _read(path, stream, places, hasher, thread)
            if stream.read(1):
                raise ArtifactError(f"{path} is longer than its header says.", COPY_AGAIN)
    except OSError as error:
        raise ArtifactError(f"Cannot read {path}: {error.strerror}.", COPY_AGAIN) from error
    if (seen := hasher.hexdigest()) != manifest.tensors_sha256:
        raise ArtifactError(
            f"{path} is damaged: its sha256 is {seen[:12]}, the manifest says {manifest.tensors_sha256[:12]}.",
            COPY_AGAIN,
        )


_Place = tuple[str, tuple[int, ...], torch.dtype]


def _places(path: Path, stream: BinaryIO, manifest: CartridgeManifest, hasher: Any) -> list[_Place]:
    """Names, shapes and types in the file's order (safetensors: 8 bytes of length, a JSON header, the data)."""
    wanted = described(manifest)
    try:
        length = stream.read(8)
        size = int.from_bytes(length, "little")
        header = stream.read(size) if size <= _MOST_HEADER else b""
        entries = json.loads(header)
        entries.pop("__metadata__", None)
        order = sorted(entries, key=lambda name: entries[name]["data_offsets"])
        shapes = {name: tuple(entries[name]["shape"]) for name in order}
        ends = [tuple(entries[name]["data_offsets"]) for name in order]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{path} is not a readable safetensors file.", COPY_AGAIN) from error
    hasher.update(length + header)
    places, offset = [], 0
    for name, (start, end) in zip(order, ends, strict=True):
        shape, dtype = wanted.get(name, ((), ""))
        itemsize = getattr(torch, dtype or "uint8").itemsize
        offset += math.prod(shape) * itemsize
        if shapes[name] != shape or (start, end) != (offset - math.prod(shape) * itemsize, offset):
            raise ArtifactError(f"{name} of {path} is not as its manifest says.", COPY_AGAIN)
        places.append((name, shape, getattr(torch, dtype)))
    if missing := sorted(set(wanted) - set(order)):
        raise ArtifactError(f"{missing[0]} is missing in {path}.", COPY_AGAIN)
    return places


def _read(
    path: Path, stream: BinaryIO, places: list[_Place], hasher: Any, thread: ThreadPoolExecutor
) -> Iterator[tuple[str, Tensor]]:
    largest = max(math.prod(shape) * dtype.itemsize for _, shape, dtype in places)
    buffers = [bytearray(largest) for _ in range(_BUFFERS)]
    hashing: list[Future[None] | None] = [None] * _BUFFERS
    for index, (name, shape, dtype) in enumerate(places):
        slot = index % _BUFFERS
        if (before := hashing[slot]) is not None:
            before.result()
        size = math.prod(shape) * dtype.itemsize
        part = memoryview(buffers[slot])[:size]
        filled = 0
        while filled < size:
            count = stream.readinto(part[filled:])
            if not count:
                raise ArtifactError(f"{path} ends in {name}.", COPY_AGAIN)
            filled += count
        hashing[slot] = thread.submit(hasher.update, part)
        tensor = torch.frombuffer(part, dtype=dtype).view(shape)
        # One pass, several times faster than isfinite over half precision; NaN goes through both.
        if not all(math.isfinite(bound) for bound in torch.stack(torch.aminmax(tensor)).tolist()):
            raise ArtifactError(f"{name} of a Cartridge holds values that are not finite.", COPY_AGAIN)
        yield name, tensor
    for last in hashing:
        if last is not None:
            last.result()
