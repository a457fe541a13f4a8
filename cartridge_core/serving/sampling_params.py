"""How an answer is to be written, whatever writes it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class SamplingParams:
    """How one answer is written. Names and meanings are OpenAI's."""

    max_tokens: int
    """Longest answer in tokens."""
    temperature: float = 1.0
    """0 takes the likeliest token."""
    top_p: float = 1.0
    """Only the likeliest tokens that together reach this probability are drawn from."""
    seed: int | None = None
    """The same seed gives the same answer; None draws one."""
    stop: tuple[str, ...] = ()
    """Texts that end the answer and are not part of it."""
    logprobs: int | None = None
    """Likeliest tokens to report at each step beside the one taken; None for no log-probs at all."""
