"""Initialisation from a previous Cartridge: a warm start, for a corpus that grew or changed, or to go on training."""

import torch
from transformers import DynamicCache

from cartridge_core.cartridge import Cartridge, PrefixKV
from cartridge_core.errors import ArtifactError, TrainingError
from cartridge_core.inference.prefix import past_key_values, read_prefix
from cartridge_core.initialization.first_tokens import check_length
from cartridge_core.initialization.options import CartridgeOptions
from cartridge_core.initialization.sampled_chunks import head_length, sample_windows
from cartridge_core.initialization.source import InitializationSource
from cartridge_core.manifest import BaseModelIdentity
from cartridge_core.models import BaseModel
from cartridge_core.rendering import prefix_token_ids, template_digest

_WINDOW = 64
"""Tokens of a window of the corpus, as in sampled chunk initialisation."""


def previous_cartridge(source: InitializationSource) -> PrefixKV:
    """The previous Cartridge's keys and values; further tokens are windows of the corpus, read behind it.

    A longer Cartridge keeps all of the previous one and starts its other tokens as `sampled_chunks` does. A shorter one
    is refused: which of the trained tokens could go is not known.

    Raises:
        TrainingError: The previous Cartridge is not given, longer, or does not end where the next token starts.
        BaseModelMismatchError: It belongs to another base model.
        ArtifactError: Its folder holds another Cartridge, or a damaged one.
    """
    options = source.options_for(CartridgeOptions)
    if options.folder is None:
        raise TrainingError(
            f"Nobody says where Cartridge {options.cartridge} lies.", "Give its folder, or train through the stages."
        )
    cartridge = Cartridge.load(options.folder)
    if cartridge.digest != options.cartridge:
        raise ArtifactError(
            f"{options.folder} holds Cartridge {cartridge.digest[:12]}, not {options.cartridge[:12]}.",
            "Give the whole digest of the Cartridge in the folder.",
        )
    base = source.base
    check_previous(cartridge, base.identity, template_digest(base.tokenizer), source.num_tokens)
    return continued(source, cartridge)


def continued(source: InitializationSource, cartridge: Cartridge) -> PrefixKV:
    """All of a Cartridge that `check_previous` accepts, and behind it windows of the corpus up to the wanted length.

    Raises:
        TrainingError: The corpus has fewer tokens than are missing.
    """
    base = source.base
    prefix = cartridge.prefix().to(base.device, base.dtype)
    missing = source.num_tokens - prefix.num_tokens
    if not missing:
        return prefix
    ids = prefix_token_ids(base.tokenizer, source.corpus.text())
    text = ids[head_length(base, ids) :]
    check_length(missing, len(text), "rest of the corpus")
    return _read_behind(base, prefix, sample_windows(text, missing, _WINDOW, source.seed))


def check_previous(cartridge: Cartridge, identity: BaseModelIdentity, rendering: str, num_tokens: int) -> None:
    """Refuse a Cartridge that another one cannot start from. Needs no model in memory.

    Args:
        cartridge: The previous one.
        identity: The model to train for.
        rendering: `rendering.template_digest` of its tokenizer.
        num_tokens: Length of the Cartridge to train.

    Raises:
        BaseModelMismatchError: It belongs to another base model.
        TrainingError: It was trained behind another rendering, is longer, or does not end where the next token starts.
    """
    cartridge.check_base_model(identity)
    name = f"Cartridge {cartridge.digest[:12]}"
    if cartridge.manifest.template_digest != rendering:
        raise TrainingError(
            f"{name} was trained with another rendering of conversations "
            f"({cartridge.manifest.template_digest[:12]}, now {rendering[:12]}).",
            "Start from another initialisation.",
        )
    if not cartridge.publishable():
        raise TrainingError(
            f"{name} has {cartridge.num_tokens} tokens, but what follows it starts at position "
            f"{cartridge.manifest.next_position}.",
            "Move its keys to 0, 1, 2, ... first, or start from another initialisation.",
        )
    if cartridge.num_tokens > num_tokens:
        raise TrainingError(
            f"{name} has {cartridge.num_tokens} tokens; one of {num_tokens} cannot start from it.",
            f"Choose at least {cartridge.num_tokens} tokens.",
        )


@torch.inference_mode()
def _with_tokens(base: BaseModel, prefix: PrefixKV, token_ids: list[int]) -> DynamicCache:
    cache = past_key_values(base, prefix)
    start = prefix.next_position
    positions = torch.arange(start, start + len(token_ids), device=base.device)[None]
    ids = torch.tensor([token_ids], device=base.device)
    base.model(input_ids=ids, position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return cache


def _read_behind(base: BaseModel, prefix: PrefixKV, token_ids: list[int]) -> PrefixKV:
    return read_prefix(base, _with_tokens(base, prefix, token_ids), prefix.next_position + len(token_ids))
