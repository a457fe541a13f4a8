"""Llama models of published shapes with random weights: speed does not depend on what the weights are."""

from dataclasses import dataclass

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from cartridge_core.architectures import layer_specs
from cartridge_core.attention import install
from cartridge_core.manifest import BaseModelIdentity
from cartridge_core.models import BaseModel
from cartridge_core.prefix_kv import PrefixKV


@dataclass(frozen=True)
class LlamaShape:
    """What decides the cost of a step."""

    name: str
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    tied: bool
    rope_factor: float

    def config(self) -> LlamaConfig:
        """The stock configuration, with Llama 3's scaled RoPE."""
        rope = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": self.rope_factor, "low_freq_factor": 1.0}
        return LlamaConfig(
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_hidden_layers=self.num_layers,
            num_attention_heads=self.num_heads,
            num_key_value_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            vocab_size=self.vocab_size,
            tie_word_embeddings=self.tied,
            max_position_embeddings=131072,
            rms_norm_eps=1e-5,
            rope_parameters=rope | {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192},
        )


LLAMA_3B = LlamaShape("llama_3b", 3072, 8192, 28, 24, 8, 128, 128256, tied=True, rope_factor=32.0)
"""Llama-3.2-3B."""
LLAMA_8B = LlamaShape("llama_8b", 4096, 14336, 32, 32, 8, 128, 128256, tied=False, rope_factor=8.0)
"""Llama-3.1-8B."""
LLAMA_100M = LlamaShape("llama_100m", 768, 2048, 12, 12, 4, 64, 32000, tied=True, rope_factor=8.0)
"""100 million parameters: large enough for a CPU's products to count, and quick to make."""
TINY = LlamaShape("tiny", 96, 192, 2, 6, 2, 16, 512, tied=True, rope_factor=8.0)
"""To see that a program runs. Three query heads a KV head, as Llama-3.2-3B has."""


def random_model(shape: LlamaShape, device: torch.device, dtype: torch.dtype, seed: int = 0) -> BaseModel:
    """A frozen model made where it will run; it has no tokenizer, because nobody asks it for words.

    Args:
        shape: Its size.
        device: Where its weights are made.
        dtype: Their type.
        seed: Of the weights.
    """
    config = shape.config()
    torch.manual_seed(seed)
    with device:
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    install(model)
    model.eval().requires_grad_(False)
    return BaseModel(
        identity=BaseModelIdentity(
            id=shape.name, revision=f"random-{seed}", config_digest="0" * 64, tokenizer_digest="0" * 64
        ),
        model=model,
        tokenizer=None,
        layer_specs=layer_specs(config),
        device=model.device,
        eos_ids=frozenset(),
        max_positions=config.max_position_embeddings,
        kv_dtype=dtype,
    )


def random_prefix(base: BaseModel, num_tokens: int, seed: int = 1) -> PrefixKV:
    """Normal keys and values, made on a CPU so that every device gets the same ones."""
    generator = torch.Generator().manual_seed(seed)
    tensors = [
        torch.randn(spec.num_kv_heads, num_tokens, spec.head_dim, generator=generator).to(base.device)
        for spec in base.layer_specs * 2
    ]
    layers = len(base.layer_specs)
    return PrefixKV(tensors[:layers], tensors[layers:], num_tokens)
