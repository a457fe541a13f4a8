"""Pieces of a corpus that are read one at a time, each with the conversations that are about it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cartridge_core.corpus.corpus import Corpus
from cartridge_core.corpus.document import document_header, document_text
from cartridge_core.errors import TrainingError
from cartridge_core.initialization.source import InitializationSource
from cartridge_core.rendering import prefix_token_ids
from cartridge_core.selfstudy.conversation import Conversation

_MARGIN = 16
"""Tokens that a piece may have more when it is tokenized alone."""


@dataclass(frozen=True, eq=False)
class Piece:
    """A part of the corpus, wrapped as the whole would be."""

    token_ids: list[int]
    """The system message that wraps the part."""
    conversations: tuple[Conversation, ...]
    """Those about the part, each of which can be read behind it."""


def cut_pieces(source: InitializationSource, conversations: Sequence[Conversation], most: int | None) -> list[Piece]:
    """The corpus in as few pieces as the model's window has room for, of nearly equal length.

    Args:
        source: Model and corpus.
        conversations: What is read behind the pieces.
        most: Most tokens of a piece; None for what the window allows.

    Returns:
        One piece that holds everything where it fits; else a conversation goes to the piece that holds the middle of
        its chunk.

    Raises:
        TrainingError: There is no room for a piece, or a conversation does not say what it is about.
    """
    base, text = source.base, source.corpus.text()
    longest = max(len(conversation.token_ids) for conversation in conversations)
    room = base.max_positions - longest
    whole = prefix_token_ids(base.tokenizer, text)
    if len(whole) <= min(room, most or room):
        return [Piece(whole, tuple(conversations))]

    encoded = base.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    begins = [start for start, _ in encoded["offset_mapping"]]
    around = len(whole) - len(begins)
    limit = min(room - around - _MARGIN, most or room)
    if limit < 1:
        raise TrainingError(
            f"Conversations of up to {longest} tokens leave no room for the corpus in the {base.max_positions} "
            f"positions of {base.identity.id}.",
            "Study with shorter answers, or choose another initialisation.",
        )
    count = -(-len(begins) // limit)
    cuts = [begins[len(begins) * place // count] if place else 0 for place in range(count)]
    places = [_middle(source.corpus, conversation.chunk_id) for conversation in conversations]
    owners = np.searchsorted(cuts, places, side="right") - 1
    return [
        Piece(
            prefix_token_ids(base.tokenizer, text[start:end]),
            tuple(c for c, owner in zip(conversations, owners, strict=True) if owner == index),
        )
        for index, (start, end) in enumerate(zip(cuts, [*cuts[1:], len(text)], strict=True))
    ]


def _middle(corpus: Corpus, chunk_id: str) -> int:
    """Character of the corpus's text at the middle of a chunk (`corpus:document:start-end`)."""
    try:
        _, document, span = chunk_id.split(":")
        start, end = span.split("-")
        index, middle = int(document), (int(start) + int(end)) // 2
        before = sum(len(document_text(earlier)) + 2 for earlier in corpus.documents[:index])
        return before + len(document_header(corpus.documents[index])) + 1 + middle
    except (ValueError, IndexError) as error:
        raise TrainingError(
            f"A conversation is about chunk {chunk_id!r}, which is no place in corpus {corpus.name!r}.",
            "Study this corpus, or choose another initialisation.",
        ) from error


def draw_conversations(source: InitializationSource, most_tokens: int) -> list[Conversation]:
    """Conversations in a random order until they have so many tokens: at least one, none twice.

    Raises:
        TrainingError: There are none.
    """
    offered = source.conversations
    if not offered:
        raise TrainingError(
            "Attention matching takes its queries from a study's conversations, and there are none.",
            "Study the corpus first, or choose another initialisation.",
        )
    drawn: list[Conversation] = []
    tokens = 0
    for index in np.random.default_rng(source.seed).permutation(len(offered)):
        conversation = offered[int(index)]
        drawn.append(conversation)
        tokens += len(conversation.token_ids)
        if tokens >= most_tokens:
            break
    return drawn
