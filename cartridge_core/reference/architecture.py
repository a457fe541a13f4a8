"""A stock Qwen2 with its look-up circuit seeded, and the stock Llama that it is shipped as.

Trained from a plain start, a model this small learns which *class* of values an attribute has and stalls there for
thousands of steps: it never binds values to names. Two layers of attention that do bind are therefore written into the
initial weights (Qwen2 has q/k/v biases, so purely positional heads can be expressed); all weights then train freely.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

QUERY_LOOK_BACK = (0.0, 1.0, 2.3, 4.3)  # words around the query
KEY_LOOK_BACK = (1.0, 2.0, 3.3, 5.3)  # words before a candidate
_SHARPNESS = (1.0, 1.0, 0.6, 0.4)  # the further back, the broader
_FAST_PAIRS = 9  # RoPE pairs that tell neighbouring positions apart
_SLOW_FROM = 12  # RoPE pairs from here on hardly turn within a few hundred tokens


@dataclass(frozen=True)
class Shape:
    """Size of the reference model."""

    vocab_size: int
    hidden_size: int = 256
    intermediate_size: int = 512
    num_layers: int = 4
    num_heads: int = 8
    num_kv_heads: int = 2
    head_dim: int = 64
    max_positions: int = 4096
    rope_theta: float = 500_000.0


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


def _orthogonal(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """`[rows, columns]` with orthonormal rows."""
    return torch.linalg.qr(torch.randn(columns, rows, generator=generator))[0].T.contiguous()


def _positional_bias(look_back: float, scale: float, shape: Shape) -> Tensor:
    """`[head_dim]`: unit vectors on the fast RoPE pairs, turned back by `look_back` positions."""
    half = shape.head_dim // 2
    bias = torch.zeros(shape.head_dim)
    for pair in range(_FAST_PAIRS):
        angle = look_back * shape.rope_theta ** (-pair / half)
        bias[pair], bias[pair + half] = scale * math.cos(angle), -scale * math.sin(angle)
    return bias


@torch.no_grad()
def seed_lookup(model: Qwen2ForCausalLM, shape: Shape, generator: torch.Generator) -> None:
    """Write the look-up circuit into the first two layers.

    Layer 0 gathers the recent words of every position twice: as a query (including itself) and as a key (before
    itself), into two orthogonal subspaces of the residual stream. Layer 1 lets a position attend to the word that
    followed the same recent words, and copies it.
    """
    dim, hidden = shape.head_dim, shape.hidden_size
    group = shape.num_heads // shape.num_kv_heads
    gather = _orthogonal(dim, hidden, generator)
    subspaces = _orthogonal(2 * dim, hidden, generator).view(2, dim, hidden)

    first = model.model.layers[0].self_attn
    first.q_proj.weight.mul_(0.2)
    first.k_proj.weight.mul_(0.2)
    for head in range(shape.num_heads):
        rows = slice(head * dim, (head + 1) * dim)
        side, place = divmod(head, group)
        look_back = (QUERY_LOOK_BACK, KEY_LOOK_BACK)[side][place]
        first.q_proj.bias[rows] = _positional_bias(look_back, 6.0 * _SHARPNESS[place], shape)
        first.o_proj.weight[:, rows] = 0.05 * subspaces[side].T
    for head in range(shape.num_kv_heads):
        rows = slice(head * dim, (head + 1) * dim)
        first.k_proj.bias[rows] = _positional_bias(0.0, 6.0, shape)
        first.v_proj.weight[rows] = gather

    second = model.model.layers[1].self_attn
    half = dim // 2
    slow = torch.tensor([*range(_SLOW_FROM, half), *range(half + _SLOW_FROM, dim)])
    copies = _orthogonal(shape.num_kv_heads * dim, hidden, generator).view(shape.num_kv_heads, dim, hidden)
    for kv_head in range(shape.num_kv_heads):
        mix = torch.zeros(dim, dim)
        mix[slow] = 0.7 * _orthogonal(len(slow), dim, generator)
        rows = slice(kv_head * dim, (kv_head + 1) * dim)
        second.k_proj.weight[rows] = mix @ subspaces[1]
        second.v_proj.weight[rows] = copies[kv_head]
        for head in range(kv_head * group, (kv_head + 1) * group):
            columns = slice(head * dim, (head + 1) * dim)
            second.q_proj.weight[columns] = mix @ subspaces[0]
            second.o_proj.weight[:, columns] = 0.05 * copies[kv_head].T


def build_model(shape: Shape, bos: int, eos: int, pad: int, seed: int) -> Qwen2ForCausalLM:
    """A fresh fp32 model with the seeded circuit; the same seed gives the same weights."""
    if shape.num_kv_heads != 2:
        raise ValueError(f"The seeded circuit needs 2 key/value heads, not {shape.num_kv_heads}.")
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(build_config(shape, bos, eos, pad)).float()
    seed_lookup(model, shape, torch.Generator().manual_seed(seed))
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
