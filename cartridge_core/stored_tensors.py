"""What stands in `cartridge.safetensors`: the names, shapes and types of a Cartridge's tensors, exact and quantised."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as dump_tensors
from torch import Tensor

from cartridge_core.digest import sha256_bytes
from cartridge_core.errors import ArtifactError
from cartridge_core.manifest import COPY_AGAIN, CartridgeManifest, Quantization
from cartridge_core.quantization import KEY_AXIS, VALUE_AXIS, dequantize, quantize

TENSORS_FILE = "cartridge.safetensors"

_AXES = {"key": KEY_AXIS, "value": VALUE_AXIS}

Side = Sequence[Tensor | None]
"""Keys or values: per layer `[num_kv_heads, num_tokens, head_dim]`, or None for a layer without its own cache."""


def exact_tensors(keys: Side, values: Side) -> dict[str, Tensor]:
    """Keys and values under their names: `layers.{i}.key` and `layers.{i}.value`."""
    return {
        f"layers.{i}.{side}": tensor.contiguous()
        for side, tensors in (("key", keys), ("value", values))
        for i, tensor in enumerate(tensors)
        if tensor is not None
    }


def quantized_tensors(keys: Side, values: Side, quantization: Quantization) -> dict[str, Tensor]:
    """Keys and values as a quantised Cartridge stores them.

    Returns:
        Per layer and side, with e exact tokens: `layers.{i}.key` `[num_kv_heads, num_tokens - e, head_dim]` in the
        storage type, `layers.{i}.key_scale` fp32 (`[num_kv_heads, head_dim]`; of values, `[num_kv_heads,
        num_tokens - e]`) and, unless e is 0, `layers.{i}.key_exact` `[num_kv_heads, e, head_dim]` in the base
        model's type.
    """
    exact = quantization.num_exact_tokens
    stored: dict[str, Tensor] = {}
    for name, tensor in exact_tensors(keys, values).items():
        axis = _AXES[name.rpartition(".")[2]]
        small, scale = quantize(tensor[:, exact:], quantization.storage_dtype, axis)
        stored |= {name: small.contiguous(), f"{name}_scale": scale.contiguous()}
        if exact:
            stored[f"{name}_exact"] = tensor[:, :exact].contiguous()
    return stored


def keys_and_values(
    manifest: CartridgeManifest, tensors: Mapping[str, Tensor]
) -> tuple[list[Tensor | None], list[Tensor | None]]:
    """Keys and values in the base model's type, dequantised where they are quantised.

    Args:
        manifest: What the tensors are.
        tensors: As they are stored; `check_tensors` let them pass.
    """
    sides = []
    for side, axis in _AXES.items():
        names = [f"layers.{i}.{side}" if layer.has_kv else None for i, layer in enumerate(manifest.layers)]
        sides.append([None if name is None else _restored(manifest, tensors, name, axis) for name in names])
    return sides[0], sides[1]


def _restored(manifest: CartridgeManifest, tensors: Mapping[str, Tensor], name: str, axis: int) -> Tensor:
    if manifest.quantization is None:
        return tensors[name]
    rest = dequantize(tensors[name], tensors[f"{name}_scale"], axis, getattr(torch, manifest.dtype))
    exact = tensors.get(f"{name}_exact")
    return rest if exact is None else torch.cat((exact, rest), dim=1)


def check_tensors(manifest: CartridgeManifest, tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors that are not the ones a manifest describes.

    Raises:
        ArtifactError: Names the tensor and says what is wrong: missing, unknown, another shape or type.
    """
    wanted = described(manifest)
    for name, (shape, dtype) in wanted.items():
        if name not in tensors:
            raise ArtifactError(f"{name} is missing.", COPY_AGAIN)
        if (seen := tuple(tensors[name].shape)) != shape:
            raise ArtifactError(f"{name} has shape {seen}, the manifest says {shape}.", COPY_AGAIN)
        if (stored := dtype_name(tensors[name].dtype)) != dtype:
            raise ArtifactError(f"{name} is {stored}, the manifest says {dtype}.", COPY_AGAIN)
    if unknown := sorted(set(tensors) - set(wanted)):
        raise ArtifactError(f"{TENSORS_FILE} holds tensors that its manifest does not know: {unknown}.", COPY_AGAIN)


def described(manifest: CartridgeManifest) -> dict[str, tuple[tuple[int, ...], str]]:
    """Name to shape and type of each tensor that a manifest describes."""
    quantization = manifest.quantization
    exact = quantization.num_exact_tokens if quantization else 0
    rest = manifest.num_tokens - exact
    described: dict[str, tuple[tuple[int, ...], str]] = {}
    for index, layer in enumerate(manifest.layers):
        if not layer.has_kv:
            continue
        for side in _AXES:
            name = f"layers.{index}.{side}"
            stored = quantization.storage_dtype if quantization else manifest.dtype
            described[name] = (layer.num_kv_heads, rest, layer.head_dim), stored
            if quantization:
                others = layer.head_dim if side == "key" else rest
                described[f"{name}_scale"] = (layer.num_kv_heads, others), "float32"
            if exact:
                described[f"{name}_exact"] = (layer.num_kv_heads, exact, layer.head_dim), manifest.dtype
    return described


def dump(tensors: Mapping[str, Tensor]) -> bytes:
    """The file's bytes; the same tensors give the same bytes."""
    return dump_tensors(dict(tensors))


def read_tensors(folder: Path, manifest: CartridgeManifest, verify: bool) -> dict[str, Tensor]:
    """The tensors in a folder as they are stored.

    Args:
        folder: Holds the file.
        manifest: What it should hold.
        verify: Whether to check the file's sha256.

    Raises:
        ArtifactError: The file is missing, damaged or no safetensors file.
    """
    path = folder / TENSORS_FILE
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"Cannot read {path}: {error.strerror}.", COPY_AGAIN) from error
    if verify and (seen := sha256_bytes(data)) != manifest.tensors_sha256:
        raise ArtifactError(
            f"{path} is damaged: its sha256 is {seen[:12]}, the manifest says {manifest.tensors_sha256[:12]}.",
            COPY_AGAIN,
        )
    try:
        return load_tensors(data)
    except SafetensorError as error:
        raise ArtifactError(f"{path} is not a readable safetensors file: {error}.", COPY_AGAIN) from error


def dtype_name(dtype: torch.dtype) -> str:
    """A type's name in manifests: torch's own."""
    return str(dtype).removeprefix("torch.")
