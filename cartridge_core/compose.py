"""Several Cartridges in front of one prompt."""

from collections.abc import Sequence

import torch

from cartridge_core.cartridge import Cartridge
from cartridge_core.errors import ArtifactError
from cartridge_core.positions import inverse_frequencies, rerotate
from cartridge_core.prefix_kv import PrefixKV


def compose(cartridges: Sequence[Cartridge]) -> PrefixKV:
    """Cartridges of one base model one behind the other along the tokens.

    The keys of each are turned to the positions behind the one before, in fp32, so that it stands to the user's tokens
    as it did when it was trained alone. Every Cartridge keeps its first token, the attention sink. In layers with a
    sliding window a token sees the last tokens in front of it, whichever Cartridge they belong to: the earlier
    Cartridges fall out of the window first.

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
    first, *others = cartridges
    prefix = first.prefix()
    for cartridge in others:
        cartridge.check_base_model(first.manifest.base_model)
        prefix = _behind(prefix, cartridge)
    return prefix


def _behind(front: PrefixKV, cartridge: Cartridge) -> PrefixKV:
    manifest, taken = cartridge.manifest, front.num_tokens
    if front.next_position != taken or not cartridge.publishable():
        raise ArtifactError(
            f"Cartridge {cartridge.digest[:12]} or one in front of it leaves positions free behind its tokens.",
            "Compose Cartridges that were made by `cartridge train`.",
        )
    positions = torch.tensor(manifest.key_positions)
    keys, values = list(front.keys), list(front.values)
    for index, layer in enumerate(manifest.layers):
        key, value, own_key, own_value = keys[index], values[index], cartridge.keys[index], cartridge.values[index]
        if key is None or value is None or own_key is None or own_value is None:
            continue
        turned = rerotate(own_key, positions, positions + taken, inverse_frequencies(layer))
        keys[index], values[index] = torch.cat((key, turned), dim=1), torch.cat((value, own_value), dim=1)
    return PrefixKV(keys, values, taken + cartridge.num_tokens)
