"""Initialisation from the beginning of the corpus, the paper's best (arXiv 2506.06266, section 5.3)."""

from cartridge_core.cartridge import PrefixKV
from cartridge_core.errors import TrainingError
from cartridge_core.inference.prefix import prefill
from cartridge_core.models import BaseModel
from cartridge_core.rendering import prefix_token_ids


def first_tokens(base: BaseModel, text: str, num_tokens: int, seed: int = 0) -> PrefixKV:
    """Keys and values of the first `num_tokens` tokens of the system message that wraps the corpus.

    A causal model's keys do not depend on what follows, so only those tokens are read. The first one is the real BOS,
    on which models park attention.

    Args:
        base: The model.
        text: The corpus.
        num_tokens: Length of the Cartridge, p in the paper.
        seed: Not used; every initialiser takes one.

    Returns:
        A prefix of `num_tokens` tokens whose `next_position` is `num_tokens`.

    Raises:
        TrainingError: The corpus is shorter than the Cartridge.
    """
    token_ids = prefix_token_ids(base.tokenizer, text)
    if not 0 < num_tokens <= len(token_ids):
        raise TrainingError(
            f"A Cartridge of {num_tokens} tokens cannot start from a corpus of {len(token_ids)}.",
            f"Choose 1 to {len(token_ids)} tokens.",
        )
    return prefill(base, token_ids[:num_tokens])
