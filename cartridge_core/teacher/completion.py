"""One turn asked of vLLM's completions API: the request, and what comes back (read in the source of vLLM 0.32)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cartridge_core.errors import TeacherError
from cartridge_core.inference.generate import Generation, answer_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ID = "token_id:"
_OVER_ONE = 1e-3
"""More than what probabilities in fp32 add up to by rounding."""


@dataclass(frozen=True)
class Completion:
    """What is asked."""

    prompt_token_ids: Sequence[int]
    """The whole conversation, system message and opened turn included."""
    ends: Sequence[int]
    """Tokens that end the turn."""
    max_tokens: int
    """Most tokens, the end token included."""
    temperature: float
    """0 takes the likeliest token."""
    top_k: int
    """Likeliest tokens to report at each step; 0 for none."""
    seed: int
    """Of the draw."""

    @property
    def num_tokens(self) -> int:
        """Length of the sequence at most."""
        return len(self.prompt_token_ids) + self.max_tokens

    def body(self) -> dict[str, Any]:
        """The body of POST /v1/completions, but for the model's name."""
        body: dict[str, Any] = {
            "prompt": list(self.prompt_token_ids),
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "seed": self.seed,
            # Said, because vLLM takes what nobody says from the model's own recommendations.
            "top_p": 1.0,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            # The model's ends as the in-process teacher knows them, and no others.
            "ignore_eos": True,
            "stop_token_ids": list(self.ends),
            "return_token_ids": True,
        }
        if self.top_k:
            body |= {"logprobs": self.top_k, "return_tokens_as_token_ids": True}
        return body


def read_generation(reply: Any, asked: Completion, tokenizer: "PreTrainedTokenizerBase") -> Generation | None:
    """The turn in a reply; None where the server gave it up (as one does that is told to stop).

    Raises:
        TeacherError: It is no reply of vLLM's to this request, or its log-probabilities are not the model's own.
    """
    try:
        (choice,) = reply["choices"]
        reason = choice["finish_reason"]
        if reason not in ("stop", "length"):
            return None
        token_ids = tuple(int(token) for token in choice["token_ids"])
        topk_ids, topk_logprobs = _likeliest(choice["logprobs"]["top_logprobs"] if asked.top_k else (), asked.top_k)
    except (KeyError, TypeError, ValueError) as error:
        raise TeacherError(
            f"A teacher's reply lacks what was asked for: {type(error).__name__}: {error}.",
            "Use a vLLM server that knows `return_token_ids` (0.32 is tested), behind no proxy that changes replies.",
        ) from error
    finished = reason == "stop"
    if finished and (not token_ids or token_ids[-1] not in asked.ends):
        raise TeacherError(
            f"A teacher ended a turn with token {token_ids[-1:]}, which ends none of this model's.",
            "Start vLLM without stop tokens of its own: `--generation-config vllm`.",
        )
    if asked.top_k and len(topk_ids) != len(token_ids):
        raise TeacherError(f"A teacher gave {len(topk_ids)} distributions for {len(token_ids)} tokens.")
    return Generation(
        token_ids=token_ids,
        text=answer_text(tokenizer, token_ids, finished),
        finished=finished,
        topk_ids=topk_ids if asked.top_k else np.zeros((len(token_ids), 0), np.int32),
        topk_logprobs=topk_logprobs if asked.top_k else np.zeros((len(token_ids), 0), np.float32),
        tail_logprob=_tail(topk_logprobs) if asked.top_k else np.zeros(len(token_ids), np.float32),
    )


def _likeliest(steps: Sequence[Mapping[str, float]], top_k: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Ids and log-probabilities, `[n, k]`, likeliest first."""
    ids = np.empty((len(steps), top_k), np.int32)
    logprobs = np.empty((len(steps), top_k), np.float32)
    for row, step in enumerate(steps):
        # vLLM adds the token taken where it is not among them.
        best = sorted(step.items(), key=itemgetter(1), reverse=True)[:top_k]
        if len(best) < top_k:
            raise ValueError(f"{len(best)} of {top_k} likeliest tokens")
        ids[row] = [_token(name) for name, _ in best]
        logprobs[row] = [logprob for _, logprob in best]
    return ids, logprobs


def _token(name: str) -> int:
    if not name.startswith(_ID):
        raise ValueError(f"tokens by their text ({name!r}) and not by their ids")
    return int(name[len(_ID) :])


def _tail(topk_logprobs: NDArray[np.float32]) -> NDArray[np.float32]:
    """Log of the probability of all other tokens, `[n]`: what the likeliest leave; -inf where rounding leaves nothing.

    Raises:
        TeacherError: They add up to more than 1.
    """
    mass = np.exp(topk_logprobs.astype(np.float64)).sum(axis=1)
    if (mass > 1 + _OVER_ONE).any():
        raise TeacherError(
            f"A teacher's probabilities add up to {mass.max():.3g}.",
            "Start vLLM with `--logprobs-mode raw_logprobs`, which is the default.",
        )
    with np.errstate(divide="ignore"):
        return np.log(np.clip(1 - mass, 0, None)).astype(np.float32)
