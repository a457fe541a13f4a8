"""PEFT's CARTRIDGE adapter (peft 0.21, `peft.tuners.cartridge`): a folder with `adapter_config.json` and one tensor.

The tensor `prompt_embeddings` is fp32 `[num_tokens, num_layers * 2 * num_kv_heads * head_dim]`: a row holds a token's
key and value of the first layer, of the second, and so on; keys after RoPE. The user's first token follows at position
`num_tokens`. An adapter does not say which corpus, tokenizer or weights it belongs to, so an export adds the
Cartridge's manifest: PEFT does not look at that file, and reading the folder back gives the very same Cartridge.
"""

import json
import re
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from cartridge_core.atomic_file import atomic_file
from cartridge_core.cartridge import Cartridge, PrefixKV
from cartridge_core.digest import canonical_json, sha256_bytes
from cartridge_core.errors import ArtifactError
from cartridge_core.exchange.foreign_prefix import ForeignPrefix
from cartridge_core.manifest import CartridgeManifest, Origin, first_problem
from cartridge_core.stored_tensors import dump, exact_tensors

CONFIG_FILE = "adapter_config.json"
TENSOR_FILE = "adapter_model.safetensors"
MANIFEST_FILE = "cartridge_manifest.json"
"""The Cartridge's manifest, under a name that no other software uses."""

_TENSOR = "prompt_embeddings"
_PEFT_VERSION = "0.21.2"
_AGAIN = "Save the adapter again with `PeftModel.save_pretrained`."


def write_adapter(cartridge: Cartridge, folder: Path) -> None:
    """Write a Cartridge as a PEFT adapter; PEFT itself would write the same bytes of the tensor.

    Args:
        cartridge: An exact one.
        folder: An empty folder.

    Raises:
        ArtifactError: The layout cannot hold it: quantised, layers that differ, or a user who does not start right
            behind it.
    """
    cartridge.check_exact("written as a PEFT adapter")
    manifest = cartridge.manifest
    kinds = {(layer.has_kv, layer.num_kv_heads, layer.head_dim) for layer in manifest.layers}
    if len(kinds) > 1:
        raise ArtifactError(
            f"Cartridge {cartridge.digest[:12]} has layers of different shapes; a PEFT adapter has equal ones.",
            "Export it in its own format.",
        )
    if not cartridge.publishable():
        raise ArtifactError(
            f"Cartridge {cartridge.digest[:12]} has {cartridge.num_tokens} tokens but expects the user's first at "
            f"{manifest.next_position}; PEFT starts the user right behind the adapter.",
            "Re-rotate its keys first.",
        )
    tensor = _flat(cartridge.prefix())
    base = manifest.base_model
    _, heads, width = kinds.pop()
    config = {
        "auto_mapping": None,
        "base_model_name_or_path": base.id,
        "inference_mode": True,
        "modules_to_save": None,
        "num_attention_heads": heads,
        "num_frozen_tokens": manifest.num_frozen_tokens,
        "num_layers": len(manifest.layers),
        "num_transformer_submodules": 1,
        "num_virtual_tokens": manifest.num_tokens,
        "peft_type": "CARTRIDGE",
        "peft_version": _PEFT_VERSION,
        # A local model's revision is a digest of its files, which no hub knows.
        "revision": base.revision if re.fullmatch("[0-9a-f]{40}", base.revision) else None,
        "task_type": "CAUSAL_LM",
        "token_dim": heads * width,
    }
    files = {
        TENSOR_FILE: save({_TENSOR: tensor}, metadata={"format": "pt"}),
        CONFIG_FILE: json.dumps(config, indent=2, sort_keys=True).encode(),
        MANIFEST_FILE: canonical_json(manifest.model_dump(mode="json")).encode(),
    }
    for name, data in files.items():
        with atomic_file(folder / name) as stream:
            stream.write(data)


def read_adapter(folder: Path) -> ForeignPrefix | Cartridge:
    """Read a PEFT adapter.

    Args:
        folder: Holds `adapter_config.json` and `adapter_model.safetensors`.

    Returns:
        The Cartridge itself where the folder is an export of ours, else what the adapter knows.

    Raises:
        ArtifactError: It is no CARTRIDGE adapter, is damaged, holds a pickle, or was changed since it was exported.
    """
    config = _read_config(folder)
    layers, heads = _number(config, "num_layers", folder), _number(config, "num_attention_heads", folder)
    tokens, width = _number(config, "num_virtual_tokens", folder), _number(config, "token_dim", folder)
    frozen = config.get("num_frozen_tokens", 1)
    if width % heads or not isinstance(frozen, int) or not 0 <= frozen <= tokens:
        raise ArtifactError(f"{folder / CONFIG_FILE} contradicts itself: {config}.", _AGAIN)
    data = _read(folder / TENSOR_FILE)
    flat = _read_tensor(data, folder / TENSOR_FILE, (tokens, layers * 2 * width))
    parts = flat.view(tokens, layers, 2, heads, width // heads).permute(1, 2, 3, 0, 4)
    prefix = PrefixKV([part[0].contiguous() for part in parts], [part[1].contiguous() for part in parts], tokens)
    if (folder / MANIFEST_FILE).exists() or (folder / MANIFEST_FILE).is_symlink():
        return _exported(folder, prefix)
    name, revision = config.get("base_model_name_or_path"), config.get("revision")
    return ForeignPrefix(
        prefix=prefix,
        num_frozen_tokens=frozen,
        origin=Origin(kind="peft", digest=sha256_bytes(data)),
        base_name=name if isinstance(name, str) and name else None,
        base_revision=revision if isinstance(revision, str) and revision else None,
    )


def _flat(prefix: PrefixKV) -> Tensor:
    sides = [tensor for pair in zip(prefix.keys, prefix.values, strict=True) for tensor in pair if tensor is not None]
    # [2 * layers, heads, tokens, width] to [tokens, 2 * layers * heads * width], in the type that PEFT keeps.
    return torch.stack(sides).permute(2, 0, 1, 3).reshape(prefix.num_tokens, -1).to(torch.float32).contiguous()


def _exported(folder: Path, prefix: PrefixKV) -> Cartridge:
    path = folder / MANIFEST_FILE
    try:
        manifest = CartridgeManifest.model_validate_json(_read(path))
    except ValidationError as error:
        raise ArtifactError(
            f"{path} is not a manifest: {first_problem(error)}.", "Export the Cartridge again."
        ) from error
    ours = prefix.to(dtype=getattr(torch, manifest.dtype))
    if sha256_bytes(dump(exact_tensors(ours.keys, ours.values))) != manifest.tensors_sha256:
        raise ArtifactError(
            f"The adapter in {folder} is not the one that was exported there.",
            f"Remove {MANIFEST_FILE} to import it as another Cartridge, or export again.",
        )
    return Cartridge(manifest, ours.keys, ours.values)


def _read(path: Path) -> bytes:
    if path.is_symlink() or not path.is_file():
        if path.name == TENSOR_FILE and path.with_suffix(".bin").exists():
            raise ArtifactError(f"{path.with_suffix('.bin')} is a pickle, which is not opened.", _AGAIN)
        raise ArtifactError(
            f"{path} is not a regular file.", "Give the adapter's own folder; copy what links stand for (`cp -L`)."
        )
    try:
        return path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"Cannot read {path}: {error.strerror}.", _AGAIN) from error


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    try:
        config = json.loads(_read(path))
    except ValueError as error:
        raise ArtifactError(f"{path} is not JSON: {error}.", _AGAIN) from error
    kind = config.get("peft_type") if isinstance(config, dict) else None
    if kind != "CARTRIDGE":
        raise ArtifactError(f"{path} describes an adapter of type {kind!r}.", "Only CARTRIDGE adapters can be read.")
    if config.get("num_transformer_submodules", 1) != 1 or config.get("task_type") not in (None, "CAUSAL_LM"):
        raise ArtifactError(f"{path} describes no adapter of a decoder.", "Only those of causal models can be read.")
    return config


def _number(config: dict[str, Any], name: str, folder: Path) -> int:
    value = config.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ArtifactError(f"{folder / CONFIG_FILE} has {name} {value!r}.", _AGAIN)
    return value


def _read_tensor(data: bytes, path: Path, shape: tuple[int, int]) -> Tensor:
    try:
        tensors = load(data)
    except SafetensorError as error:
        raise ArtifactError(f"{path} is not a readable safetensors file: {error}.", _AGAIN) from error
    if set(tensors) != {_TENSOR}:
        raise ArtifactError(f"{path} holds {sorted(tensors)} instead of {_TENSOR}.", _AGAIN)
    tensor = tensors[_TENSOR]
    if tuple(tensor.shape) != shape or not tensor.is_floating_point():
        raise ArtifactError(
            f"{_TENSOR} in {path} is {tensor.dtype} {tuple(tensor.shape)}; its configuration says {shape}.", _AGAIN
        )
    return tensor
