"""The two roles of self-study, played by one teacher (arXiv 2506.06266, section 4.1).

Both see the chunk in the system message. A also sees a seed prompt and replies with a question; B answers the question.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cartridge_core.corpus.chunking import Chunk
from cartridge_core.teacher.protocol import Teacher

if TYPE_CHECKING:
    from cartridge_core.inference.generate import Generation


def ask_questions(
    teacher: Teacher,
    chunk: Chunk,
    seed_prompts: Sequence[str],
    seeds: Sequence[int],
    temperature: float,
    max_tokens: int,
) -> "list[Generation]":
    """Role A: one question about the chunk for each seed prompt."""
    return _speak(teacher, chunk, seed_prompts, seeds, temperature, max_tokens, top_k=0)


def answer_questions(
    teacher: Teacher,
    chunk: Chunk,
    questions: Sequence[str],
    seeds: Sequence[int],
    temperature: float,
    max_tokens: int,
    top_k: int = 0,
) -> "list[Generation]":
    """Role B: an answer to each question, with the `top_k` log-probabilities and the tail mass of every token."""
    return _speak(teacher, chunk, questions, seeds, temperature, max_tokens, top_k)


def _speak(
    teacher: Teacher,
    chunk: Chunk,
    user_turns: Sequence[str],
    seeds: Sequence[int],
    temperature: float,
    max_tokens: int,
    top_k: int,
) -> "list[Generation]":
    from cartridge_core.inference.generate import GenerationConfig

    config = GenerationConfig(max_new_tokens=max_tokens, temperature=temperature, top_k_logprobs=top_k)
    conversations = [[{"role": "user", "content": turn}] for turn in user_turns]
    return teacher.ask(chunk.prompt_text, conversations, config, seeds)
