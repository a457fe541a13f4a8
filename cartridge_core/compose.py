"""Several Cartridges in front of one prompt."""

from collections.abc import Sequence

import torch
from torch import Tensor

from cartridge_core.cartridge import Cartridge
from cartridge_core.errors import ArtifactError
from cartridge_core.positions import inverse_frequencies, rerotate
from cartridge_core.prefix_kv import PrefixKV


def compose(cartridges: Sequence[Cartridge]) -> PrefixKV:
    """Cartridges of one base model one behind the other along the tokens; the user's tokens come behind the last.

    The keys of each are turned so that it ends where the user's tokens begin, which is how it was trained: attention
    asks only how far apart two positions are, and keys of a Cartridge never meet those of another. So positions of
    several Cartridges coincide, and under full attention their order makes no difference. Every Cartridge keeps its
    first token, the attention sink. In layers with a sliding window a token sees the last tokens in front of it,
    whichever Cartridge they are of: the last Cartridge is seen as if it were alone, earlier ones fall out first.

    Args:
        cartridges: In order; one alone comes back as it is.

    Returns:
        Keys and values in the Cartridges' own type; the next position is the number of their tokens.

    Raises:
        ArtifactError: There are none, or one does not end where a server places the tokens behind it.
        BaseModelMismatchError: They belong to different base models.
        UnsupportedModelError: The base model's RoPE does not let keys be moved.
    """
    if not cartridges:
        raise ArtifactError("There is no Cartridge to compose.", "Name at least one.")
    if len(cartridges) == 1:
        return cartridges[0].prefix()
    for cartridge in cartridges:
        cartridge.check_base_model(cartridges[0].manifest.base_model)
        if not cartridge.publishable():
            raise ArtifactError(
                f"Cartridge {cartridge.digest[:12]} leaves positions free behind its tokens, so it cannot be composed.",
                "Build it again.",
            )
    total = sum(cartridge.num_tokens for cartridge in cartridges)
    keys = [_turned(cartridge, total - cartridge.num_tokens) for cartridge in cartridges]
    values = [cartridge.values for cartridge in cartridges]
    return PrefixKV(_joined(keys), _joined(values), total)


def _turned(cartridge: Cartridge, shift: int) -> list[Tensor | None]:
    positions = torch.tensor(cartridge.manifest.key_positions)
    return [
        None if key is None else rerotate(key, positions, positions + shift, inverse_frequencies(layer))
        for key, layer in zip(cartridge.keys, cartridge.manifest.layers, strict=True)
    ]


def _joined(sides: Sequence[Sequence[Tensor | None]]) -> list[Tensor | None]:
    """Layer by layer along the tokens; Cartridges of one base model lack keys in the same layers."""
    layers = [[tensor for tensor in layer if tensor is not None] for layer in zip(*sides, strict=True)]
    return [torch.cat(tensors, dim=1) if tensors else None for tensors in layers]
