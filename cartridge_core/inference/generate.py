"""Generation of many answers behind one prefix, with the teacher's top-k log-probs on the way."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel as Config
from pydantic import ConfigDict, Field

from cartridge_core.cartridge import PrefixKV
from cartridge_core.errors import InferenceError
from cartridge_core.inference.decoding import Written, decode
from cartridge_core.inference.prefix import empty_prefix
from cartridge_core.models import BaseModel
from cartridge_core.progress import Progress, no_progress
from cartridge_core.rendering import render_turns, turn_end_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class GenerationConfig(Config):
    """How answers are generated. Nothing here depends on how they are batched."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_new_tokens: int = Field(gt=0)
    """Longest answer in tokens, its end token included."""
    temperature: float = Field(default=0.0, ge=0)
    """0 takes the likeliest token; above it tokens are sampled."""
    top_k_logprobs: int = Field(default=0, ge=0)
    """How many of the likeliest tokens to report at each step; 0 for none."""


@dataclass(frozen=True, eq=False)
class Generation:
    """One answer.

    Attributes:
        token_ids: Generated tokens, the end token included when `finished`.
        text: The answer without its end token.
        finished: Whether the model ended it; otherwise tokens or positions ran out.
        topk_ids: `[n, k]` int32, likeliest tokens at each of the n steps, likeliest first.
        topk_logprobs: `[n, k]` float32, their log-probs at temperature 1.
        tail_logprob: `[n]` float32, log of the probability of all other tokens (-inf when there are none).
    """

    token_ids: tuple[int, ...]
    text: str
    finished: bool
    topk_ids: NDArray[np.int32]
    topk_logprobs: NDArray[np.float32]
    tail_logprob: NDArray[np.float32]


@torch.inference_mode()
def generate(
    base: BaseModel,
    prefix: PrefixKV | None,
    prompts: Sequence[Sequence[int]],
    config: GenerationConfig,
    seeds: Sequence[int] | None = None,
    progress: Progress = no_progress,
    batch_size: int = 64,
) -> list[Generation]:
    """Answer each prompt behind the same prefix.

    What a row answers depends on its prompt and its seed, not on the rows it shares a batch with.

    Args:
        base: The model.
        prefix: A Cartridge's or a prefilled text's keys and values; None for nothing.
        prompts: Token ids, each at least one (`rendering.render_turns`).
        config: Lengths, temperature, log-probs.
        seeds: One a prompt, for sampling; its place in the list where nobody says.
        progress: Told how many answers are done.
        batch_size: Rows computed at once; a matter of memory and speed only.

    Returns:
        One generation a prompt, in the prompts' order.

    Raises:
        InferenceError: A prompt is empty or leaves no position to answer in, or seeds are too few.
    """
    prefix = empty_prefix(base) if prefix is None else prefix.to(base.device, base.dtype)
    seeds = range(len(prompts)) if seeds is None else seeds
    _check(base, prefix, prompts, config, seeds)
    ends = base.eos_ids | turn_end_ids(base.tokenizer)
    # Rows of like length share a batch: padding is work.
    order = sorted(range(len(prompts)), key=lambda row: (len(prompts[row]), row))
    done: dict[int, Generation] = {}
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        written = decode(
            base,
            prefix,
            [prompts[row] for row in rows],
            ends=ends,
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            top_k=config.top_k_logprobs,
            seeds=[seeds[row] for row in rows],
        )
        done.update((row, _generation(base, written, place)) for place, row in enumerate(rows))
        progress(len(done), len(prompts), "answers")
    return [done[row] for row in range(len(prompts))]


def answer(
    base: BaseModel,
    prefix: PrefixKV | None,
    messages: Sequence[Mapping[str, str]],
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    seed: int = 0,
) -> str:
    """The reply to one conversation: what a notebook or a command line asks for.

    Args:
        base: The model.
        prefix: What precedes the conversation: `cartridge.prefix()`, a prefilled text, or None.
        messages: `{"role": ..., "content": ...}`, the last one a user's.
        max_new_tokens: Longest reply.
        temperature: 0 takes the likeliest token.
        seed: For sampling.

    Raises:
        RenderingError: The messages cannot be written in the model's chat format.
        InferenceError: They do not fit the model.
    """
    prompt = render_turns(base.tokenizer, messages, add_generation_prompt=True).token_ids
    config = GenerationConfig(max_new_tokens=max_new_tokens, temperature=temperature)
    return generate(base, prefix, [prompt], config, [seed])[0].text


def answer_text(tokenizer: "PreTrainedTokenizerBase", token_ids: Sequence[int], finished: bool) -> str:
    """What an answer's tokens say.

    Args:
        tokenizer: The model's.
        token_ids: Generated tokens.
        finished: Whether the last one is the end token, which says nothing.
    """
    said = list(token_ids[:-1] if finished else token_ids)
    return str(tokenizer.decode(said, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _generation(base: BaseModel, written: Written, row: int) -> Generation:
    length, finished = int(written.lengths[row]), bool(written.finished[row])
    token_ids = tuple(written.tokens[row, :length].tolist())
    return Generation(
        token_ids=token_ids,
        text=answer_text(base.tokenizer, token_ids, finished),
        finished=finished,
        topk_ids=written.topk_ids[row, :length].copy(),
        topk_logprobs=written.topk_logprobs[row, :length].copy(),
        tail_logprob=written.tail_logprob[row, :length].copy(),
    )


def _check(
    base: BaseModel,
    prefix: PrefixKV,
    prompts: Sequence[Sequence[int]],
    config: GenerationConfig,
    seeds: Sequence[int],
) -> None:
    if len(seeds) != len(prompts):
        raise InferenceError(f"There are {len(seeds)} seeds for {len(prompts)} prompts.", "Give each prompt one.")
    if config.top_k_logprobs > base.vocab_size:
        raise InferenceError(
            f"top_k_logprobs={config.top_k_logprobs} exceeds the vocabulary of {base.vocab_size}.", "Ask for fewer."
        )
    room = base.max_positions - prefix.next_position
    for row, prompt in enumerate(prompts):
        if not prompt:
            raise InferenceError(f"Prompt {row} has no tokens.", "Render at least one message.")
        if len(prompt) >= room:
            raise InferenceError(
                f"Prompt {row} has {len(prompt)} tokens; {base.identity.id} has {base.max_positions} positions, "
                f"{prefix.next_position} of them before the prompt.",
                "Shorten the text in front of it, or let a Cartridge stand in for that.",
            )
