"""A small corpus, and conversations about it that say what they are about."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from cartridge_core.corpus import Corpus, Document
from cartridge_core.initialization.options import OPTIONS, InitializationOptions
from cartridge_core.initialization.source import InitializationSource
from cartridge_core.models import BaseModel
from cartridge_core.rendering import render_turns
from cartridge_core.selfstudy.conversation import Conversation

TEXT = "The ward of Ada Lind is green. Her room is seven and her nurse is Tom Berg.\n" * 3
OTHER = "The door of Tom Berg is blue. His badge has the number nine and his desk is new.\n" * 3

Sourced = Callable[..., InitializationSource]


def said(base: BaseModel, question: str, answer: str, chunk_id: str) -> Conversation:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    rendered = render_turns(base.tokenizer, turns, add_generation_prompt=False)
    mask: NDArray[np.bool_] = np.array(rendered.assistant_mask)
    count = int(mask.sum())
    return Conversation(
        token_ids=np.array(rendered.token_ids, dtype=np.int32),
        assistant_mask=mask,
        topk_ids=np.zeros((count, 1), np.int32),
        topk_logprobs=np.zeros((count, 1), np.float32),
        tail_logprob=np.full(count, -np.inf, np.float32),
        sample_index=0,
        family="question",
        chunk_id=chunk_id,
        seed=0,
        seed_prompt="Ask.",
        messages=tuple(turns),
    )


def conversations(base: BaseModel, count: int = 24, first: int = 0) -> list[Conversation]:
    """Half of them about each document."""
    things = ["ward", "room", "nurse", "door", "badge", "desk"]
    return [
        said(
            base,
            f"What is the {things[i % 6]} of patient {i}?",
            f"The {things[i * 5 % 6]} is {['green', 'blue', 'seven', 'nine'][i % 4]} {i * 7}.",
            f"0123456789ab:{i % 2}:{i}-{i + 60}",
        )
        for i in range(first, first + count)
    ]


@pytest.fixture(scope="session")
def corpus() -> Corpus:
    return Corpus("wards", tuple(Document(f"{n}.txt", n, "text/plain", t) for n, t in (("A", TEXT), ("B", OTHER))))


@pytest.fixture(scope="session")
def sourced(corpus: Corpus) -> Sourced:
    """`sourced(base, name, num_tokens, seed, **options)`: what the initialiser of that name works from."""

    def make(
        base: BaseModel,
        name: str = "first_tokens",
        num_tokens: int = 80,
        seed: int = 0,
        asked: Sequence[Conversation] | None = None,
        **options: object,
    ) -> InitializationSource:
        if name == "text":
            options.setdefault("text", OTHER)
        if name == "attention_matching":
            options.setdefault("key_steps", 20)
        stated: InitializationOptions = OPTIONS[name].model_validate(options)
        heard = conversations(base) if asked is None else asked
        return InitializationSource(base, corpus, num_tokens, seed, heard, stated)

    return make
