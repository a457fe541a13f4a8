"""RoPE re-rotation: moves stored keys from the positions they were made for to others."""

from collections.abc import Sequence

import torch
from torch import Tensor


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
