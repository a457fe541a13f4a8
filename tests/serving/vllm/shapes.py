"""Base models that the connector is compared on: the reference model, and random ones of other families."""

import os
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from tests.conftest import build_tokenizer

SHAPE = os.environ.get("VLLM_SHAPE", "reference")
"""Which model; `make vllm-proof` names one after the other."""
OPTIONS = tuple(os.environ.get("VLLM_OPTIONS", "").split())
"""Further options of vLLM's."""

_SIZES = {
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 4096,
    "initializer_range": 0.2,
}
_WINDOW = 48
"""Shorter than most Cartridges of the tests."""


def _qwen3() -> PreTrainedModel:
    return Qwen3ForCausalLM(Qwen3Config(**_SIZES))


def _gemma3() -> PreTrainedModel:
    kinds = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]
    return Gemma3ForCausalLM(Gemma3TextConfig(**_SIZES, sliding_window=_WINDOW, layer_types=kinds))


def _mistral() -> PreTrainedModel:
    return MistralForCausalLM(MistralConfig(**_SIZES, sliding_window=_WINDOW))


_KINDS: dict[str, tuple[Callable[[], PreTrainedModel], str]] = {
    "qwen3": (_qwen3, "qwen3"),
    "gemma3": (_gemma3, "gemma"),
    "mistral": (_mistral, "ours"),
}


def model_of(folder: Path) -> str:
    """The model to serve: `reference`, or a folder that it was just written to."""
    if SHAPE == "reference":
        return SHAPE
    make, chat_format = _KINDS[SHAPE]
    torch.manual_seed(0)
    model, tokenizer = make(), build_tokenizer(chat_format)
    for config in (model.config, model.generation_config):
        config.bos_token_id, config.eos_token_id, config.pad_token_id = None, tokenizer.eos_token_id, None
    model.save_pretrained(folder / SHAPE)
    tokenizer.save_pretrained(folder / SHAPE)
    return str(folder / SHAPE)
