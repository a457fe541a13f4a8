"""Initialisation from the beginning of the corpus, the paper's best (arXiv 2506.06266, section 5.3)."""

from cartridge_core.cartridge import PrefixKV
from cartridge_core.errors import TrainingError
from cartridge_core.inference.prefix import prefill
from cartridge_core.initialization.source import InitializationSource
from cartridge_core.models import BaseModel
from cartridge_core.rendering import prefix_token_ids


def first_tokens(source: InitializationSource) -> PrefixKV:
    """Keys and values of the first `num_tokens` tokens of the system message that wraps the corpus.

    Raises:
        TrainingError: The corpus is shorter than the Cartridge.
    """
    return head_of(source.base, source.corpus.text(), source.num_tokens, "corpus")


def head_of(base: BaseModel, text: str, num_tokens: int, what: str) -> PrefixKV:
    """Keys and values of the first tokens of the system message that wraps a text.

    A causal model's keys do not depend on what follows, so only those tokens are read. The first one is the real BOS,
    on which models park attention.

    Args:
        base: The model.
        text: What is wrapped.
        num_tokens: How many tokens.
        what: What to call the text in an error.

    Raises:
        TrainingError: The message is shorter than that.
    """
    token_ids = prefix_token_ids(base.tokenizer, text)
    check_length(num_tokens, len(token_ids), what)
    return prefill(base, token_ids[:num_tokens])


def check_length(num_tokens: int, available: int, what: str) -> None:
    """Refuse a Cartridge that is longer than what it is made from.

    Raises:
        TrainingError: Says which lengths are possible.
    """
    if not 0 < num_tokens <= available:
        raise TrainingError(
            f"A Cartridge of {num_tokens} tokens cannot start from a {what} of {available}.",
            f"Choose 1 to {available} tokens.",
        )
