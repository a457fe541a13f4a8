"""The manifest of a Cartridge: what its tensors are, for which base model, and where they come from.

Reading a manifest needs no torch, so the registry, the catalog and the gateway can do it anywhere.
"""

import json
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from cartridge_core.digest import digest_of
from cartridge_core.errors import ArtifactError

MANIFEST_FILE = "manifest.json"
"""The artifact's commit marker: a folder without it holds no Cartridge."""

COPY_AGAIN = "Copy the whole folder again from where it was made, or build the Cartridge again."
"""What to do about a damaged artifact."""

FORMAT_VERSION = 1
"""Version of the artifact's layout that this software writes and reads."""

DType = Literal["float32", "bfloat16", "float16"]
"""Element types a Cartridge's keys and values may have."""

StorageDType = Literal["int8", "float8_e4m3fn"]
"""Element types that a quantised Cartridge is stored in, under torch's and safetensors' names."""

STORAGE: dict[str, StorageDType] = {"int8": "int8", "fp8": "float8_e4m3fn"}
"""A user's word for each of them."""

ITEM_BYTES: dict[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1, "float8_e4m3fn": 1}
"""Bytes of one element."""


class LayerSpec(BaseModel):
    """What one decoder layer keeps in its key/value cache."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    has_kv: bool = True
    """False for a layer that keeps no keys and values of its own."""
    num_kv_heads: int = Field(gt=0)
    """Key/value heads (fewer than query heads under grouped-query attention)."""
    head_dim: int = Field(gt=0)
    """Width of one head."""
    rope: dict[str, Any] = Field(default_factory=dict)
    """RoPE parameters of the layer as the model's configuration states them (type, theta, scaling)."""
    window: int | None = None
    """Sliding attention window in tokens; None for full attention."""


class BaseModelIdentity(BaseModel):
    """Which base model a product belongs to, as exactly as weights can be named."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    """Hub id, or the folder's name for a local model."""
    revision: str
    """Hub commit, or a digest of the weight files for a local model."""
    config_digest: str
    """sha256 of the model's configuration."""
    tokenizer_digest: str
    """sha256 of the tokenizer's vocabulary and rules."""


class Quantization(BaseModel):
    """How a Cartridge's keys and values are stored in fewer bits than the base model's own type."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    storage_dtype: StorageDType
    """Element type on disk; in memory they have the manifest's `dtype` again."""
    num_exact_tokens: int = Field(ge=0)
    """Leading tokens that are stored exactly, in the manifest's `dtype`: the attention sink."""


class Origin(BaseModel):
    """What a Cartridge was made from when it was not trained here."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["quantization", "peft", "reference"]
    """Quantised from an exact Cartridge, or imported from a PEFT adapter or a reference implementation's checkpoint."""
    digest: str
    """Digest of the exact Cartridge, or sha256 of the imported file."""


class CartridgeManifest(BaseModel):
    """Everything about a Cartridge but its tensors. Its digest is the Cartridge's identity."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1] = 1
    """Layout of the artifact."""
    tenant: str = "default"
    """Who the corpus belongs to."""
    base_model: BaseModelIdentity
    """The only model that can read these keys and values."""
    layers: tuple[LayerSpec, ...]
    """One entry a decoder layer, in order."""
    dtype: DType
    """Element type of keys and values: the base model's stored type."""
    num_tokens: int = Field(gt=0)
    """Virtual tokens, p in the paper."""
    num_frozen_tokens: int = Field(default=1, ge=0)
    """Leading tokens that training left as they were (the attention sink)."""
    key_positions: tuple[int, ...]
    """Position that each key was rotated for."""
    next_position: int = Field(gt=0)
    """Position of the first token that follows the Cartridge."""
    template_digest: str
    """sha256 of the rendering that puts messages behind the Cartridge."""
    corpus_digest: str | None = None
    """Corpus the Cartridge stands in for."""
    dataset_digest: str | None = None
    """Conversations it was trained on; None for next-token training or an untrained Cartridge."""
    training_config_digest: str | None = None
    """Training configuration; None for an untrained Cartridge."""
    seed: int | None = None
    """Seed of initialisation and training."""
    software_version: str
    """Version of Cartridge Foundry that wrote it."""
    tensors_sha256: str
    """sha256 of `cartridge.safetensors`."""
    quantization: Quantization | None = None
    """How the tensors are stored in fewer bits; None for an exact Cartridge."""
    origin: Origin | None = None
    """What it was made from; None for a Cartridge that was trained or initialised here."""

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if len(self.key_positions) != self.num_tokens:
            raise ValueError(f"key_positions has {len(self.key_positions)} entries for num_tokens={self.num_tokens}")
        if self.num_frozen_tokens > self.num_tokens:
            raise ValueError(f"num_frozen_tokens={self.num_frozen_tokens} exceeds num_tokens={self.num_tokens}")
        if not any(layer.has_kv for layer in self.layers):
            raise ValueError("no layer keeps keys and values")
        if (self.quantization is not None) != (self.origin is not None and self.origin.kind == "quantization"):
            raise ValueError("a quantised Cartridge, and no other, has an exact one as its origin")
        if self.quantization is not None and self.quantization.num_exact_tokens >= self.num_tokens:
            raise ValueError(
                f"num_exact_tokens={self.quantization.num_exact_tokens} leaves nothing to quantise of "
                f"num_tokens={self.num_tokens}"
            )
        return self

    @model_serializer(mode="wrap")
    def _without_what_does_not_apply(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Left out rather than null: manifests written before these fields existed keep their digests.
        content: dict[str, Any] = handler(self)
        return {k: v for k, v in content.items() if v is not None or k not in ("quantization", "origin")}

    @property
    def digest(self) -> str:
        """sha256 of the canonical manifest, which holds the tensors' own: the Cartridge's identity."""
        return digest_of(self.model_dump(mode="json"))

    @property
    def kv_bytes(self) -> int:
        """Bytes of keys and values in the base model's type: what they take in memory, and what memory ratios count.

        A quantised Cartridge takes as many, because it is dequantised on load; `stored_bytes` is the smaller number.
        """
        return self._values_per_token * self.num_tokens * ITEM_BYTES[self.dtype]

    @property
    def stored_bytes(self) -> int:
        """Bytes of the tensors on disk: keys and values as stored, and the scales of quantised ones."""
        if self.quantization is None:
            return self.kv_bytes
        exact = self.quantization.num_exact_tokens
        rest = self.num_tokens - exact
        scales = sum(layer.num_kv_heads * (layer.head_dim + rest) for layer in self.layers if layer.has_kv)
        return (
            self._values_per_token
            * (exact * ITEM_BYTES[self.dtype] + rest * ITEM_BYTES[self.quantization.storage_dtype])
            + scales * ITEM_BYTES["float32"]
        )

    @property
    def _values_per_token(self) -> int:
        return sum(2 * layer.num_kv_heads * layer.head_dim for layer in self.layers if layer.has_kv)


def read_manifest(folder: Path | str) -> CartridgeManifest:
    """The manifest in a folder, without its tensors.

    Raises:
        ArtifactError: It is missing, unreadable or of another format version.
    """
    path = Path(folder) / MANIFEST_FILE
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise ArtifactError(
            f"{Path(folder)} holds no Cartridge: cannot read {MANIFEST_FILE} ({error.strerror}).",
            "Give the folder that Cartridge.save wrote.",
        ) from error
    except ValueError as error:
        raise ArtifactError(f"{path} is not JSON: {error}.", COPY_AGAIN) from error
    version = content.get("format_version") if isinstance(content, dict) else None
    if version != FORMAT_VERSION:
        raise ArtifactError(
            f"{path} has format version {version!r}; this software reads {FORMAT_VERSION}.",
            "Upgrade cartridge-foundry, or build the Cartridge again.",
        )
    try:
        return CartridgeManifest.model_validate_json(json.dumps(content))
    except ValidationError as error:
        raise ArtifactError(f"{path} is not a valid manifest: {first_problem(error)}.", COPY_AGAIN) from error


def first_problem(error: ValidationError) -> str:
    """The first complaint of a validation, in one line."""
    problem = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in problem["loc"])
    return f"{where}: {problem['msg']}" if where else str(problem["msg"])
