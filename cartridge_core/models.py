"""Base models: loading, identity and what a Cartridge has to know about them."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cartridge_core.architectures import check_architecture, layer_specs
from cartridge_core.attention import install
from cartridge_core.errors import UnsupportedModelError
from cartridge_core.identity import config_digest, tokenizer_digest, weights_digest
from cartridge_core.manifest import BaseModelIdentity, LayerSpec
from cartridge_core.model_description import (
    eos_ids,
    identity_of,
    load_tokenizer,
    longest_sequence,
    read_config,
    read_tokenizer,
    readable,
)
from cartridge_core.model_files import REFERENCE_PATH, locate

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "REFERENCE_PATH",
    "BaseModel",
    "BaseModelIdentity",
    "ModelLayout",
    "from_parts",
    "identify",
    "load_base_model",
    "load_tokenizer",
    "read_layout",
]


@dataclass(frozen=True, eq=False)
class BaseModel:
    """A frozen language model in memory, ready to sit behind a Cartridge.

    Attributes:
        identity: Which model it is.
        model: In evaluation mode, without gradients.
        tokenizer: A fast tokenizer with a chat template.
        layer_specs: One entry a decoder layer.
        device: Where the weights are.
        eos_ids: Tokens that end an answer.
        max_positions: Longest sequence the model was made for, in tokens.
        kv_dtype: Type the weights are stored in, and Cartridges of this model too.
    """

    identity: BaseModelIdentity
    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    layer_specs: tuple[LayerSpec, ...]
    device: torch.device
    eos_ids: frozenset[int]
    max_positions: int
    kv_dtype: torch.dtype

    @property
    def dtype(self) -> torch.dtype:
        """Type that the model computes in."""
        return self.model.dtype

    @property
    def vocab_size(self) -> int:
        """Width of the logits."""
        return int(self.model.get_output_embeddings().weight.shape[0])

    def inv_freq(self, layer: int) -> Tensor:
        """RoPE inverse frequencies of a layer as the model applies them (fp32, `[rotary_dim / 2]`).

        Args:
            layer: Index of a decoder layer.

        Raises:
            UnsupportedModelError: The frequencies change with the length of the text, so keys cannot be moved.
        """
        kind = self.layer_specs[layer].rope.get("rope_type", "default")
        if kind in ("dynamic", "longrope"):
            raise UnsupportedModelError(
                f"{self.identity.id} uses {kind!r} RoPE, whose frequencies change with the length of the text.",
                "Keep the keys of its Cartridges where they are.",
            )
        windowed = "sliding_attention" if self.layer_specs[layer].window else "full_attention"
        for module in self.model.modules():
            for name in (f"{windowed}_inv_freq", "inv_freq"):
                found = getattr(module, name, None)
                if isinstance(found, Tensor):
                    return found.float()
        raise UnsupportedModelError(f"{self.identity.id} shows no RoPE frequencies.")


@dataclass(frozen=True)
class ModelLayout:
    """What a Cartridge has to fit: a base model without its weights.

    Attributes:
        identity: Which model it is.
        layer_specs: One entry a decoder layer.
        max_positions: Longest sequence the model was made for, in tokens.
        kv_dtype: Type the weights are stored in, and Cartridges of this model too.
    """

    identity: BaseModelIdentity
    layer_specs: tuple[LayerSpec, ...]
    max_positions: int
    kv_dtype: torch.dtype


def load_base_model(
    id_or_path: str | Path,
    revision: str | None = None,
    device: str = "auto",
    dtype: torch.dtype | None = None,
) -> BaseModel:
    """Load a model and its tokenizer.

    Args:
        id_or_path: "reference" (the shipped model), a local folder, or a hub id.
        revision: Hub commit, branch or tag; a local folder has none.
        device: "auto" takes a GPU when there is one.
        dtype: Type to compute in; fp32 on a CPU (bf16 sums lose digits there), the stored type elsewhere.

    Raises:
        UnsupportedModelError: The model cannot hold a Cartridge.
        CartridgeError: It cannot be found, reached or read.
    """
    from transformers import AutoModelForCausalLM

    files = locate(id_or_path, revision)
    config = read_config(files)
    check_architecture(config)
    place = torch.device(device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu")
    stored = _stored_dtype(config)
    compute = dtype or (torch.float32 if place.type == "cpu" else stored)
    with readable(files):
        model = AutoModelForCausalLM.from_pretrained(files.folder, dtype=compute, use_safetensors=True)
    tokenizer = read_tokenizer(files)
    return _assemble(model.to(place), tokenizer, identity_of(files, tokenizer), stored)


def identify(id_or_path: str | Path, revision: str | None = None) -> BaseModelIdentity:
    """Which model this is, without loading its weights.

    Raises:
        UnsupportedModelError: The model cannot hold a Cartridge.
        CartridgeError: It cannot be found, reached or read.
    """
    files = locate(id_or_path, revision, weights=False)
    check_architecture(read_config(files))
    return identity_of(files, read_tokenizer(files))


def read_layout(id_or_path: str | Path, revision: str | None = None) -> ModelLayout:
    """What a Cartridge of this model looks like, without loading its weights.

    Raises:
        UnsupportedModelError: The model cannot hold a Cartridge.
        CartridgeError: It cannot be found, reached or read.
    """
    files = locate(id_or_path, revision, weights=False)
    config = read_config(files)
    check_architecture(config)
    return ModelLayout(
        identity=identity_of(files, read_tokenizer(files)),
        layer_specs=layer_specs(config),
        max_positions=longest_sequence(config),
        kv_dtype=_stored_dtype(config),
    )


def from_parts(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", id: str, revision: str | None = None
) -> BaseModel:
    """A base model of parts already in memory.

    Args:
        model: A causal language model.
        tokenizer: Its fast tokenizer.
        id: Name to give it.
        revision: Name of its weights; a digest of them where nobody says.

    Raises:
        UnsupportedModelError: The model cannot hold a Cartridge.
    """
    check_architecture(model.config)
    # A configuration learns these two when its model is first saved; the model stays what it is.
    stated = {"architectures": [type(model).__name__], "dtype": str(model.dtype).removeprefix("torch.")}
    identity = BaseModelIdentity(
        id=id,
        revision=revision or weights_digest(model)[:16],
        config_digest=config_digest(model.config.to_dict() | stated),
        tokenizer_digest=tokenizer_digest(tokenizer),
    )
    return _assemble(model, tokenizer, identity, model.dtype)


def _assemble(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    identity: BaseModelIdentity,
    stored: torch.dtype,
) -> BaseModel:
    install(model)
    model.eval().requires_grad_(False)
    return BaseModel(
        identity=identity,
        model=model,
        tokenizer=tokenizer,
        layer_specs=layer_specs(model.config),
        device=model.device,
        eos_ids=eos_ids(
            tokenizer.eos_token_id,
            *(getattr(config, "eos_token_id", None) for config in (model.generation_config, model.config)),
        ),
        max_positions=longest_sequence(model.config),
        kv_dtype=stored,
    )


def _stored_dtype(config: Any) -> torch.dtype:
    stored = config.dtype or config.get_text_config(decoder=True).dtype or torch.float32
    return getattr(torch, stored) if isinstance(stored, str) else stored
