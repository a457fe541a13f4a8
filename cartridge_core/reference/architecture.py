"""The stock Qwen2 that the reference model is trained as, and the stock Llama that it is shipped as."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from cartridge_core.reference.lookup_circuit import seed_lookup
from cartridge_core.reference.shape import Shape
from cartridge_core.reference.word_classes import WordClasses


def build_config(shape: Shape, bos: int, eos: int, pad: int) -> Qwen2Config:
    """The stock transformers configuration of a shape."""
    return Qwen2Config(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=shape.max_positions,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        tie_word_embeddings=True,
        bos_token_id=bos,
        eos_token_id=eos,
        pad_token_id=pad,
    )


def build_model(shape: Shape, bos: int, eos: int, pad: int, words: WordClasses, seed: int) -> Qwen2ForCausalLM:
    """A fresh fp32 model with the seeded circuit; the same seed gives the same weights."""
    if shape.num_kv_heads != 2:
        raise ValueError(f"The seeded circuit needs 2 key/value heads, not {shape.num_kv_heads}.")
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(build_config(shape, bos, eos, pad)).float()
    seed_lookup(model, shape, words, torch.Generator().manual_seed(seed))
    return model


@torch.no_grad()
def as_llama(model: Qwen2ForCausalLM, dtype: torch.dtype) -> LlamaForCausalLM:
    """The same function as a stock Llama with attention biases (the output projection's is zero).

    It is shipped in this form because `AutoTokenizer` gives every Qwen2 checkpoint Qwen2's own tokenizer.
    """
    config = model.config.to_dict()
    for key in (
        "model_type",
        "architectures",
        "use_sliding_window",
        "max_window_layers",
        "sliding_window",
        "layer_types",
    ):
        config.pop(key, None)
    llama = LlamaForCausalLM(LlamaConfig(**config | {"attention_bias": True, "mlp_bias": False}))
    weights = dict(model.state_dict())
    for index in range(llama.config.num_hidden_layers):
        weights[f"model.layers.{index}.self_attn.o_proj.bias"] = torch.zeros(llama.config.hidden_size)
    llama.load_state_dict(weights)
    llama.config.dtype = dtype
    return llama.to(dtype)
