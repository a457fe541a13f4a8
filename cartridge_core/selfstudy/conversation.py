"""A conversation about a chunk, and everything that can become of one that was begun."""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

Outcome = Literal[
    "kept",
    "question_unfinished",
    "question_empty",
    "question_repeated",
    "question_held_out",
    "answer_unfinished",
    "answer_empty",
]
"""`kept`, or why a conversation was dropped. `question_repeated`: asked before about the same chunk of a greedy
answerer, who would say the same again. `question_held_out`: reserved for evaluation."""

OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)


@dataclass(frozen=True, eq=False)
class Targets:
    """What a student learns from one conversation: its tokens, and the teacher's distribution of the answer's.

    With t tokens, m of which are the answer's (end token included), and the k most likely tokens kept:

    Attributes:
        token_ids: `[t]` int32, the rendered user turn and the answer: what follows a Cartridge.
        assistant_mask: `[t]` bool, True on the m answer tokens.
        topk_ids: `[m, k]` int32. Row j is the distribution that the j-th answer token was drawn from: a student's
            logits one position before that token are compared with it.
        topk_logprobs: `[m, k]` float32, natural logarithms at temperature 1, descending.
        tail_logprob: `[m]` float32, logarithm of the probability of all other tokens together.
    """

    token_ids: npt.NDArray[np.int32]
    assistant_mask: npt.NDArray[np.bool_]
    topk_ids: npt.NDArray[np.int32]
    topk_logprobs: npt.NDArray[np.float32]
    tail_logprob: npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Sample:
    """One conversation that was begun, kept or dropped."""

    sample_index: int
    """Its place in the study: every index appears exactly once."""
    family: str
    """Seed family of the asker."""
    chunk_id: str
    """The chunk it is about."""
    seed: int
    """Seed of both roles' draws."""
    seed_prompt: str
    """What the asker was told to ask for."""
    outcome: Outcome
    """What became of it."""
    question: str
    """What the asker said; kept for dropped ones too, for whoever wants to know why."""
    answer: str = ""
    """What the answerer said, where it was asked."""
    targets: Targets | None = None
    """What a student learns from it, where it was kept."""


@dataclass(frozen=True, eq=False)
class Conversation(Targets):
    """A kept conversation, ready to be learnt from."""

    sample_index: int
    """Its place in the study."""
    family: str
    """Seed family of the asker."""
    chunk_id: str
    """The chunk it is about."""
    seed: int
    """Seed of both roles' draws."""
    seed_prompt: str
    """What the asker was told to ask for."""
    messages: tuple[dict[str, str], ...]
    """The user's turn and the assistant's."""
    finished: bool = True
    """Whether the answer ended by itself; unfinished ones are dropped when they are made."""
