"""The Cartridge: a trained key/value cache that stands in for a corpus (arXiv 2506.06266), and its files on disk."""

import math
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from pydantic import ValidationError
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
    Origin,
    Quantization,
    first_problem,
    read_manifest,
)
from cartridge_core.prefix_kv import PrefixKV
from cartridge_core.quantization import storage_dtype
from cartridge_core.stored_tensors import (
    TENSORS_FILE,
    Side,
    check_tensors,
    dtype_name,
    dump,
    exact_tensors,
    keys_and_values,
    quantized_tensors,
    read_tensors,
)

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


class Cartridge:
    """Tensors and manifest of a trained (or untrained) key/value prefix.

    Make one with `Cartridge.from_prefix`, read one with `Cartridge.load`.

    Attributes:
        manifest: What the tensors are and where they come from.
        keys: Per layer `[num_kv_heads, num_tokens, head_dim]` after RoPE in the base model's type, or None; those of
            a quantised Cartridge are dequantised already.
        values: As `keys`.
    """

    def __init__(
        self, manifest: CartridgeManifest, keys: Side, values: Side, stored: Mapping[str, Tensor] | None = None
    ) -> None:
        self.manifest = manifest
        self.keys = list(keys)
        self.values = list(values)
        self._stored = exact_tensors(self.keys, self.values) if stored is None else dict(stored)
        if (counts := (len(self.keys), len(self.values))) != (len(manifest.layers),) * 2:
            raise ArtifactError(f"Layers of keys and values: {counts}; the manifest has {len(manifest.layers)}.")
        check_tensors(manifest, self._stored)

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
            **provenance: `tenant`, `corpus_digest`, `dataset_digest`, `training_config_digest`, `seed` and `origin` of
                the manifest.

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
                dtype=dtype_name(dtype),  # type: ignore[arg-type]  # pydantic refuses other names
                num_tokens=count,
                num_frozen_tokens=num_frozen_tokens,
                key_positions=tuple(range(count)) if key_positions is None else tuple(key_positions),
                next_position=prefix.next_position,
                template_digest=template_digest,
                software_version=__version__,
                tensors_sha256=sha256_bytes(dump(exact_tensors(keys, values))),
                **provenance,
            )
        except ValidationError as error:
            raise ArtifactError(f"These fields cannot describe a Cartridge: {first_problem(error)}.") from error
        cartridge = cls(manifest, keys, values)
        cartridge.check_finite()
        return cartridge

    def quantized(self, storage: str, num_exact_tokens: int | None = None) -> Self:
        """The same Cartridge stored in eight bits; it names this one as its origin.

        The frozen tokens stay exact: the attention sink's keys are outliers, which would set the channels' scales.

        Args:
            storage: `int8` or `fp8`.
            num_exact_tokens: Leading tokens to store exactly; the frozen ones where nobody says.

        Raises:
            ArtifactError: There is no such storage, nothing to quantise, or this Cartridge is quantised already.
        """
        self.check_exact("quantised again")
        exact = self.manifest.num_frozen_tokens if num_exact_tokens is None else num_exact_tokens
        if not 0 <= exact < self.num_tokens:
            raise ArtifactError(f"Storing {exact} of {self.num_tokens} tokens exactly leaves nothing to quantise.")
        quantization = Quantization(storage_dtype=storage_dtype(storage), num_exact_tokens=exact)
        stored = quantized_tensors(self.keys, self.values, quantization)
        manifest = self.manifest.model_copy(
            update={
                "quantization": quantization,
                "origin": Origin(kind="quantization", digest=self.digest),
                "software_version": __version__,
                "tensors_sha256": sha256_bytes(dump(stored)),
            }
        )
        return type(self)(manifest, *keys_and_values(manifest, stored), stored)

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
        """Bytes of keys and values in the base model's type, as memory ratios count them."""
        return self.manifest.kv_bytes

    @property
    def stored_bytes(self) -> int:
        """Bytes of its tensors on disk; fewer than `kv_bytes` where it is quantised."""
        return self.manifest.stored_bytes

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

    def check_exact(self, purpose: str) -> None:
        """Refuse a quantised Cartridge where only the exact one makes sense, such as to be "trained further".

        Raises:
            ArtifactError: It is quantised; names the exact one that it comes from.
        """
        quantization, origin = self.manifest.quantization, self.manifest.origin
        if quantization is not None and origin is not None:
            raise ArtifactError(
                f"Cartridge {self.digest[:12]} is stored as {quantization.storage_dtype} and cannot be {purpose}.",
                f"Take the exact Cartridge that it was made from, {origin.digest[:12]}.",
            )

    def check_finite(self) -> None:
        """Refuse NaN and infinity.

        Raises:
            ArtifactError: Names the tensor.
        """
        for name, tensor in exact_tensors(self.keys, self.values).items():
            # One pass, several times faster than isfinite over half precision; NaN goes through both.
            if not all(math.isfinite(bound) for bound in torch.stack(torch.aminmax(tensor)).tolist()):
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
            _write(staging / TENSORS_FILE, dump(self._stored))
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
        stored = read_tensors(source, manifest, verify)
        check_tensors(manifest, stored)
        cartridge = cls(manifest, *keys_and_values(manifest, stored), stored)
        if verify:
            cartridge.check_finite()
        return cartridge


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
