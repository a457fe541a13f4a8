"""The Cartridge: a trained key/value cache that stands in for a corpus (arXiv 2506.06266), and its files on disk."""

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as dump_tensors
from torch import Tensor

from cartridge_core import __version__
from cartridge_core.digest import canonical_json, sha256_bytes
from cartridge_core.errors import ArtifactError, BaseModelMismatchError
from cartridge_core.manifest import (
    COPY_AGAIN,
    MANIFEST_FILE,
    BaseModelIdentity,
    CartridgeManifest,
    LayerSpec,
    first_problem,
    read_manifest,
)
from cartridge_core.prefix_kv import PrefixKV

__all__ = [
    "MANIFEST_FILE",
    "TENSORS_FILE",
    "BaseModelIdentity",
    "Cartridge",
    "CartridgeManifest",
    "LayerSpec",
    "PrefixKV",
    "read_manifest",
]

TENSORS_FILE = "cartridge.safetensors"


class Cartridge:
    """Tensors and manifest of a trained (or untrained) key/value prefix.

    Make one with `Cartridge.from_prefix`, read one with `Cartridge.load`.

    Attributes:
        manifest: What the tensors are and where they come from.
        keys: Per layer `[num_kv_heads, num_tokens, head_dim]` after RoPE in the stored type, or None.
        values: As `keys`.
    """

    def __init__(
        self, manifest: CartridgeManifest, keys: Sequence[Tensor | None], values: Sequence[Tensor | None]
    ) -> None:
        self.manifest = manifest
        self.keys = list(keys)
        self.values = list(values)
        _check_tensors(manifest, self.keys, self.values)

    @classmethod
    def from_prefix(
        cls,
        prefix: PrefixKV,
        *,
        base_model: BaseModelIdentity,
        layers: Sequence[LayerSpec],
        dtype: torch.dtype,
        template_digest: str,
        num_frozen_tokens: int = 1,
        key_positions: Sequence[int] | None = None,
        **provenance: Any,
    ) -> Self:
        """A Cartridge of these keys and values.

        Args:
            prefix: Keys and values in any floating type.
            base_model: The model they were made with.
            layers: The model's layer specifications (`BaseModel.layer_specs`).
            dtype: Type to store in, the model's own (`BaseModel.kv_dtype`), so that memory is compared like with like.
            template_digest: `rendering.template_digest` of the model's tokenizer.
            num_frozen_tokens: Leading tokens that training did not touch.
            key_positions: Position each key was rotated for; 0, 1, 2, ... where nobody says.
            **provenance: `tenant`, `corpus_digest`, `dataset_digest`, `training_config_digest`, `seed` of the manifest.

        Raises:
            ArtifactError: Shapes do not fit the layers, or a value is not finite in `dtype`.
        """
        count = prefix.num_tokens
        # Copies: the artifact must not change when a trainer goes on with its own tensors.
        keys, values = (
            [None if t is None else t.detach().to(device="cpu", dtype=dtype, copy=True).contiguous() for t in side]
            for side in (prefix.keys, prefix.values)
        )
        try:
            manifest = CartridgeManifest(
                base_model=base_model,
                layers=tuple(layers),
                dtype=_dtype_name(dtype),  # type: ignore[arg-type]  # pydantic refuses other names
                num_tokens=count,
                num_frozen_tokens=num_frozen_tokens,
                key_positions=tuple(range(count)) if key_positions is None else tuple(key_positions),
                next_position=prefix.next_position,
                template_digest=template_digest,
                software_version=__version__,
                tensors_sha256=sha256_bytes(_dump(keys, values)),
                **provenance,
            )
        except ValidationError as error:
            raise ArtifactError(f"These fields cannot describe a Cartridge: {first_problem(error)}.") from error
        cartridge = cls(manifest, keys, values)
        cartridge.check_finite()
        return cartridge

    @property
    def digest(self) -> str:
        """sha256 of the canonical manifest: the Cartridge's identity everywhere."""
        return self.manifest.digest

    @property
    def num_tokens(self) -> int:
        """Virtual tokens, p in the paper."""
        return self.manifest.num_tokens

    @property
    def kv_bytes(self) -> int:
        """Bytes of keys and values in the stored type."""
        return self.manifest.kv_bytes

    def __repr__(self) -> str:
        base = self.manifest.base_model
        return (
            f"Cartridge({self.digest[:12]}, {self.num_tokens} tokens, {self.kv_bytes / 1024:,.0f} KiB, "
            f"for {base.id} at {base.revision})"
        )

    def prefix(self) -> PrefixKV:
        """Keys and values as a prefix that inference and training take."""
        return PrefixKV(self.keys, self.values, self.manifest.next_position)

    def publishable(self) -> bool:
        """Whether a server that starts the user's tokens at `num_tokens` serves this Cartridge as it was trained."""
        return self.manifest.next_position == self.num_tokens

    def check_base_model(self, identity: BaseModelIdentity) -> None:
        """Refuse a model that these keys and values were not made with.

        Raises:
            BaseModelMismatchError: Names both models and says what to do.
        """
        ours = self.manifest.base_model
        if ours == identity:
            return
        belongs = f"Cartridge {self.digest[:12]} belongs to {ours.id} at revision {ours.revision}"
        if (ours.id, ours.revision) != (identity.id, identity.revision):
            raise BaseModelMismatchError(
                f"{belongs}, not to {identity.id} at revision {identity.revision}.",
                f"Load {ours.id} at revision {ours.revision}, or build a Cartridge for {identity.id}.",
            )
        part = "configuration" if ours.config_digest != identity.config_digest else "tokenizer"
        raise BaseModelMismatchError(
            f"{belongs}, but the {part} of the loaded model differs from the one it was built with.",
            f"Restore the model's original {part} files, or build the Cartridge again.",
        )

    def check_finite(self) -> None:
        """Refuse NaN and infinity.

        Raises:
            ArtifactError: Names the tensor.
        """
        for name, tensor in _named(self.keys, self.values).items():
            if not torch.isfinite(tensor).all():
                raise ArtifactError(f"{name} of a Cartridge holds values that are not finite.", COPY_AGAIN)

    def save(self, folder: Path | str) -> Path:
        """Write the artifact so that a reader sees all of it or none: a temporary folder, then a rename.

        A folder that already holds this very Cartridge is left as it is; other files in the folder are kept.

        Args:
            folder: Where `cartridge.safetensors` and `manifest.json` go.

        Returns:
            The folder.

        Raises:
            ArtifactError: The folder holds another Cartridge.
        """
        target = Path(folder)
        if (target / MANIFEST_FILE).exists():
            if Cartridge.load(target).digest == self.digest:
                return target
            raise ArtifactError(f"{target} already holds another Cartridge.", "Save to a new folder, or remove it.")
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        try:
            _write(staging / TENSORS_FILE, _dump(self.keys, self.values))
            # The manifest is the commit marker: it is written, and below moved, after the tensors it vouches for.
            _write(staging / MANIFEST_FILE, canonical_json(self.manifest.model_dump(mode="json")).encode())
            staging.chmod(0o755)
            if not target.exists() or not any(target.iterdir()):
                staging.replace(target)
            else:
                for name in (TENSORS_FILE, MANIFEST_FILE):
                    (staging / name).replace(target / name)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        return target

    @classmethod
    def load(cls, folder: Path | str, verify: bool = True) -> Self:
        """Read an artifact.

        Args:
            folder: Holds `cartridge.safetensors` and `manifest.json`.
            verify: Check the tensors' digest and finiteness; names, shapes and types are always checked.

        Raises:
            ArtifactError: Something is missing, of another format or damaged; the message says which file.
        """
        source = Path(folder)
        manifest = read_manifest(source)
        path = source / TENSORS_FILE
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
            tensors = load_tensors(data)
        except SafetensorError as error:
            raise ArtifactError(f"{path} is not a readable safetensors file: {error}.", COPY_AGAIN) from error
        keys, values = (
            [tensors.pop(f"layers.{i}.{side}", None) for i in range(len(manifest.layers))] for side in ("key", "value")
        )
        if tensors:
            unknown = sorted(tensors)
            raise ArtifactError(f"{path} holds tensors that its manifest does not know: {unknown}.", COPY_AGAIN)
        cartridge = cls(manifest, keys, values)
        if verify:
            cartridge.check_finite()
        return cartridge


def _named(keys: Sequence[Tensor | None], values: Sequence[Tensor | None]) -> dict[str, Tensor]:
    sides = (("key", keys), ("value", values))
    return {f"layers.{i}.{side}": t for side, tensors in sides for i, t in enumerate(tensors) if t is not None}


def _dump(keys: Sequence[Tensor | None], values: Sequence[Tensor | None]) -> bytes:
    return dump_tensors({name: tensor.contiguous() for name, tensor in _named(keys, values).items()})


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _check_tensors(manifest: CartridgeManifest, keys: Sequence[Tensor | None], values: Sequence[Tensor | None]) -> None:
    if not len(keys) == len(values) == len(manifest.layers):
        raise ArtifactError(
            f"A Cartridge has {len(keys)} layers of keys and {len(values)} of values; its manifest has "
            f"{len(manifest.layers)} layers."
        )
    found = _named(keys, values)
    for index, layer in enumerate(manifest.layers):
        for side in ("key", "value"):
            name = f"layers.{index}.{side}"
            if (name in found) != layer.has_kv:
                raise ArtifactError(f"{name} is {'missing' if layer.has_kv else 'not expected'}.", COPY_AGAIN)
            if not layer.has_kv:
                continue
            wanted = (layer.num_kv_heads, manifest.num_tokens, layer.head_dim)
            if (seen := tuple(found[name].shape)) != wanted:
                raise ArtifactError(f"{name} has shape {seen}, the manifest says {wanted}.", COPY_AGAIN)
            if (dtype := _dtype_name(found[name].dtype)) != manifest.dtype:
                raise ArtifactError(f"{name} is {dtype}, the manifest says {manifest.dtype}.", COPY_AGAIN)


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
