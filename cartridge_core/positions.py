"""RoPE re-rotation: moves stored keys from the positions they were made for to others."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from cartridge_core.errors import UnsupportedModelError
from cartridge_core.manifest import LayerSpec


def rerotate(
    keys: Tensor, from_pos: Sequence[int] | Tensor, to_pos: Sequence[int] | Tensor, inv_freq: Tensor
) -> Tensor:
    """Keys as they would be had their tokens stood at `to_pos` instead of `from_pos`.

    RoPE rotations compose, so turning by the difference suffices (arXiv 2104.09864, eq. 15). Angles are taken in fp32:
    half precision is off by whole radians at positions in the thousands. The `rotate_half` pairing of Llama, Qwen,
    Gemma and Mistral is meant: channel i turns with channel i + len(inv_freq). A scaling of attention (YaRN's) is
    already in the keys and stays.

    Args:
        keys: `[num_kv_heads, num_tokens, head_dim]`, after RoPE.
        from_pos: Positions the keys were rotated for, one a token.
        to_pos: Positions to rotate them to, one a token.
        inv_freq: The model's own inverse frequencies, scaled as the model scales them, `[rotary_dim / 2]`
            (`BaseModel.inv_freq`). Channels from rotary_dim on are not rotated.

    Returns:
        Keys of the same shape and type.

    Raises:
        ValueError: The number of positions differs from the number of tokens, or the frequencies exceed the head.
    """
    start, end = (torch.as_tensor(p, device=keys.device) for p in (from_pos, to_pos))
    if start.shape != end.shape or start.shape != keys.shape[1:2]:
        raise ValueError(f"{keys.shape[1]} keys, {start.numel()} positions before and {end.numel()} after")
    half = inv_freq.numel()
    if 2 * half > keys.shape[2]:
        raise ValueError(f"{half} frequencies rotate {2 * half} channels; a head has {keys.shape[2]}")
    # The difference is taken in integers: it is exact, and small where the positions are large.
    angle = (end - start).to(torch.float32)[:, None] * inv_freq.to(keys.device, torch.float32)[None, :]
    cos, sin = angle.cos(), angle.sin()
    exact = keys.to(torch.float32)
    first, second, rest = exact[..., :half], exact[..., half : 2 * half], exact[..., 2 * half :]
    turned = torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1)
    return turned.to(keys.dtype)


def inverse_frequencies(layer: LayerSpec) -> Tensor:
    """RoPE inverse frequencies of a layer from what its manifest says, without the model (fp32, `[rotary_dim / 2]`).

    Raises:
        UnsupportedModelError: The frequencies change with the length of the text, so keys cannot be moved, or the
            manifest does not say enough.
    """
    kind = layer.rope.get("rope_type", "default")
    if kind in ("dynamic", "longrope"):
        raise UnsupportedModelError(
            f"{kind!r} RoPE has frequencies that change with the length of the text.",
            "Keep the keys of such a model's Cartridges where they are.",
        )
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    try:
        if kind == "default":
            dim = int(layer.head_dim * layer.rope.get("partial_rotary_factor", 1.0))
            theta = float(layer.rope["rope_theta"])
            return torch.reciprocal(torch.pow(theta, torch.arange(0, dim, 2, dtype=torch.int64).float() / dim))
        # No real configuration: what a scaling takes from elsewhere (the window, say) must be missed, not made up.
        config: Any = SimpleNamespace(
            head_dim=layer.head_dim,
            hidden_size=layer.head_dim,
            num_attention_heads=1,
            rope_parameters=dict(layer.rope),
            standardize_rope_params=lambda: None,
        )
        return ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))[0]
    except (KeyError, AttributeError) as error:
        raise UnsupportedModelError(
            f"A layer's RoPE, {layer.rope}, does not say its frequencies: {error} is missing.",
            "Keep the keys of such a model's Cartridges where they are.",
        ) from error
