"""One batch of rows that write together, a token at a time, behind one prefix."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from cartridge_core.attention import behind
from cartridge_core.cartridge import PrefixKV
from cartridge_core.models import BaseModel


class RoomyLayer(DynamicLayer):
    """A cache layer that reserves its room at once: growing by concatenation would copy everything at every step."""

    keys: Tensor
    values: Tensor
    is_initialized: bool

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room
        self.used = 0

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Append `[batch, num_kv_heads, new, head_dim]`; returns views of all keys and values so far."""
        if not self.is_initialized:
            batch, heads = key_states.shape[:2]
            self.key_room = key_states.new_empty(batch, heads, self.room, key_states.shape[3])
            self.value_room = value_states.new_empty(batch, heads, self.room, value_states.shape[3])
            self.is_initialized = True
        end = self.used + key_states.shape[2]
        self.key_room[:, :, self.used : end] = key_states
        self.value_room[:, :, self.used : end] = value_states
        self.used = end
        return self._view()

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows."""
        if not self.is_initialized:
            # A layer that reads another one's cache keeps nothing.
            return
        count = len(indices)
        for room in (self.key_room, self.value_room):
            room[:count, :, : self.used] = room[indices, :, : self.used]
        self.key_room, self.value_room = self.key_room[:count], self.value_room[:count]
        self._view()

    def _view(self) -> tuple[Tensor, Tensor]:
        self.keys, self.values = self.key_room[:, :, : self.used], self.value_room[:, :, : self.used]
        return self.keys, self.values


@dataclass(frozen=True, eq=False)
class Written:
    """What the rows of a batch wrote; row i of each array is prompt i's.

    Attributes:
        lengths: `[rows]`, tokens written.
        finished: `[rows]`, whether the last one is an end token.
        tokens: `[rows, steps]`.
        topk_ids: `[rows, steps, k]`.
        topk_logprobs: `[rows, steps, k]`, at temperature 1.
        tail_logprob: `[rows, steps]`, log of the probability of all other tokens.
    """

    lengths: NDArray[np.int32]
    finished: NDArray[np.bool_]
    tokens: NDArray[np.int32]
    topk_ids: NDArray[np.int32]
    topk_logprobs: NDArray[np.float32]
    tail_logprob: NDArray[np.float32]

    @classmethod
    def empty(cls, rows: int, steps: int, top_k: int) -> "Written":
        """Nothing written yet."""
        return cls(
            np.zeros(rows, np.int32),
            np.zeros(rows, np.bool_),
            np.zeros((rows, steps), np.int32),
            np.zeros((rows, steps, top_k), np.int32),
            np.zeros((rows, steps, top_k), np.float32),
            np.zeros((rows, steps), np.float32),
        )


def decode(
    base: BaseModel,
    prefix: PrefixKV,
    prompts: Sequence[Sequence[int]],
    *,
    ends: frozenset[int],
    max_new_tokens: int,
    temperature: float,
    top_k: int,
    seeds: Sequence[int],
) -> Written:
    """Write at most `max_new_tokens` tokens behind each prompt; a row leaves the batch when it ends.

    Args:
        base: The model.
        prefix: On the model's device and in its type.
        prompts: Token ids, each at least one.
        ends: Tokens that end a row.
        max_new_tokens: Longest answer.
        temperature: 0 takes the likeliest token.
        top_k: Likeliest tokens to report.
        seeds: One a row.
    """
    written = Written.empty(len(prompts), max_new_tokens, top_k)
    device = base.device
    end_ids = torch.tensor(sorted(ends), device=device)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    room = (base.max_positions - prefix.next_position - lengths).clamp(max=max_new_tokens)
    luck = torch.stack([_luck(seed, max_new_tokens) for seed in seeds]).to(device)
    alive = torch.arange(len(prompts), device=device)

    longest = int(lengths.max())
    padded = torch.tensor([[*prompt, *([0] * (longest - len(prompt)))] for prompt in prompts], device=device)
    cache = DynamicCache()
    cache.layers = [RoomyLayer(longest + max_new_tokens) for _ in base.layer_specs]
    slots = padded.new_empty(len(prompts), 0)
    if longest > 1:
        # All but each prompt's last token: that one is the first step's input, so that every step is alike and nobody
        # computes logits inside a prompt. Padding is on the right, where the slot index hides it.
        index = torch.arange(longest - 1, device=device).expand(len(prompts), -1)
        slots = torch.where(index < lengths[:, None] - 1, index, -1)
        _forward(base, prefix, padded[:, :-1], index, slots, cache)

    tokens = padded.gather(1, lengths[:, None] - 1)
    for step in range(max_new_tokens):
        index = lengths[:, None] - 1 + step
        slots = torch.cat((slots, index), dim=1)
        logits = _forward(base, prefix, tokens, index, slots, cache)
        tokens = _choose(logits, luck[:, step], temperature)[:, None]
        ended = torch.isin(tokens[:, 0], end_ids)
        rows = alive.cpu().numpy()
        written.lengths[rows] = step + 1
        written.finished[rows] = ended.cpu().numpy()
        written.tokens[rows, step] = tokens[:, 0].cpu().numpy()
        if top_k:
            ids, logprobs, tail = top_and_tail(logits, top_k)
            written.topk_ids[rows, step] = ids.cpu().numpy()
            written.topk_logprobs[rows, step] = logprobs.cpu().numpy()
            written.tail_logprob[rows, step] = tail.cpu().numpy()
        keep = (~ended & (step + 1 < room)).nonzero()[:, 0]
        if len(keep) == 0:
            break
        if len(keep) < len(alive):
            alive, lengths, room, luck, slots, tokens = (t[keep] for t in (alive, lengths, room, luck, slots, tokens))
            cache.batch_select_indices(keep)
    return written


def top_and_tail(logits: Tensor, top_k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probs at temperature 1 of the likeliest tokens, and of all others together.

    Args:
        logits: `[rows, vocabulary]`, fp32.
        top_k: At most the vocabulary.

    Returns:
        Ids and log-probs `[rows, top_k]`, likeliest first, and the tail's log-prob `[rows]`; -inf when `top_k` is the
        vocabulary. The tail is summed over the rest itself: 1 - sum(p) would drown in rounding when the top is sure.
    """
    top, ids = logits.topk(top_k, dim=-1)
    total = logits.logsumexp(dim=-1)
    rest = logits.scatter(1, ids, -torch.inf).logsumexp(dim=-1)
    return ids, top - total[:, None], rest - total


def _forward(
    base: BaseModel, prefix: PrefixKV, ids: Tensor, index: Tensor, slots: Tensor, cache: DynamicCache
) -> Tensor:
    with behind(prefix, base.layer_specs, index, slots) as placed:
        out = base.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1, **placed)
    return out.logits[:, -1].float()


def _luck(seed: int, count: int) -> Tensor:
    # A generator a row, on the CPU: a sample is the same on every device and in every batch.
    return torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _choose(logits: Tensor, luck: Tensor, temperature: float) -> Tensor:
    if temperature == 0:
        return logits.argmax(dim=-1)
    mass = (logits / temperature).softmax(dim=-1, dtype=torch.float64).cumsum(dim=-1)
    # Inverse of the distribution function; right=True so that a token of no probability is never taken.
    chosen = torch.searchsorted(mass, (luck * mass[:, -1])[:, None], right=True)[:, 0]
    return chosen.clamp(max=logits.shape[-1] - 1)
