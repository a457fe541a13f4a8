"""Chunks: the pieces of a document that a model studies one at a time (arXiv 2506.06266, section 4.1)."""

import random
from dataclasses import dataclass
from typing import Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from cartridge_core.corpus.document import document_header
from cartridge_core.corpus.tokenized import Indices, TokenizedCorpus


class ChunkConfig(BaseModel):
    """How long a chunk is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_tokens: int = Field(default=256, gt=0)
    """Least tokens of a chunk before it is snapped to lines; a shorter document is taken whole."""
    max_tokens: int = Field(default=1024, gt=0)
    """Most tokens of a chunk, its header not counted."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens={self.min_tokens} exceeds max_tokens={self.max_tokens}")
        return self


@dataclass(frozen=True)
class Chunk:
    """A span of one document, with the line that says where it comes from."""

    id: str
    """Corpus digest, document and span: names the text without a tokenizer."""
    document_index: int
    """Place of the document in the corpus."""
    start: int
    """First character in the document's text."""
    end: int
    """Character after the last."""
    num_tokens: int
    """Tokens of the span within its document."""
    header: str
    """`From: <title>`."""
    text: str
    """The document's text from `start` to `end`."""

    @property
    def prompt_text(self) -> str:
        """The chunk as a model sees it."""
        return f"{self.header}\n{self.text}"


def sample_chunk(
    corpus: TokenizedCorpus, rng: random.Random, config: ChunkConfig, position: float | None = None
) -> Chunk:
    """Draw a chunk: a random place, a uniform length, cut at line boundaries.

    A document is drawn in proportion to its tokens. The window may reach over either end of the document and is then
    cut to it (keeping `min_tokens`), so that the first and last facts are studied about as often as those in the
    middle. A line is cut only if it alone exceeds `max_tokens`.

    Args:
        corpus: What to draw from.
        rng: Source of the draw; only `rng.random()` is used, whose sequence Python guarantees.
        config: How long a chunk is.
        position: Where in the corpus, in [0, 1); drawn where nobody says. Evenly spread positions cover a corpus with
            fewer chunks than independent ones.
    """
    length = config.min_tokens + int(rng.random() * (config.max_tokens - config.min_tokens + 1))
    place = (rng.random() if position is None else position) * corpus.num_tokens
    index = int(np.searchsorted(corpus.ends, place, side="right"))
    document = corpus.documents[index]
    count = document.num_tokens
    if count <= length:
        return _cut(corpus, index, 0, count)
    within = (place - (int(corpus.ends[index]) - count)) / count
    over = length - config.min_tokens
    first = int(within * (count - config.min_tokens + over + 1)) - over
    start, end = max(first, 0), min(first + length, count)
    return _cut(corpus, index, *_snap(document.line_tokens, start, end, config.max_tokens))


def _snap(lines: Indices, start: int, end: int, max_tokens: int) -> tuple[int, int]:
    """Move a span's ends to beginnings of lines, unless that line alone is longer than a chunk may be."""
    line = int(np.searchsorted(lines, start, side="right")) - 1
    if lines[line + 1] - lines[line] <= max_tokens:
        start = int(lines[line])
    limit = start + max_tokens
    line = int(np.searchsorted(lines, end)) - 1  # the line that the last token is in
    whole = lines[(lines > start) & (lines <= limit)]
    if lines[line + 1] - lines[line] > max_tokens or not len(whole):
        return start, min(end, limit)
    return start, int(whole[np.abs(whole - end).argmin()])


def _cut(corpus: TokenizedCorpus, index: int, first: int, last: int) -> Chunk:
    document = corpus.documents[index]
    text = document.document.text
    start = 0 if first == 0 else document.character(first)
    end = len(text) if last == document.num_tokens else document.character(last)
    span = text[start:end]
    start += len(span) - len(span.lstrip("\n"))
    span = span.strip("\n")
    end = start + len(span)
    identity = f"{corpus.corpus.digest[:12]}:{index}:{start}-{end}"
    return Chunk(identity, index, start, end, last - first, document_header(document.document), span)
