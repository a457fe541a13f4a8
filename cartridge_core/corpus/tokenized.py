"""A corpus whose documents are tokenized: where its tokens and lines begin, so that it can be cut."""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from cartridge_core.corpus.corpus import Corpus
from cartridge_core.corpus.document import Document
from cartridge_core.errors import CorpusError, UnsupportedModelError

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class TokenizedDocument:
    """Where a document's tokens and lines begin."""

    document: Document
    """The document."""
    token_starts: Indices
    """`[num_tokens]`: character at which each token begins, ascending."""
    line_tokens: Indices
    """`[num_lines + 1]`: first token of each line that has one, and `num_tokens` at the end."""
    line_starts: Indices
    """`[num_lines + 1]`: character at which those lines begin, and the text's length at the end."""

    @property
    def num_tokens(self) -> int:
        """Tokens of the text."""
        return len(self.token_starts)

    def character(self, token: int) -> int:
        """Character at which to cut so that `token` comes first behind the cut."""
        line = int(np.searchsorted(self.line_tokens, token))
        if self.line_tokens[line] == token:
            return int(self.line_starts[line])
        return int(self.token_starts[token])

    @classmethod
    def build(cls, document: Document, tokenizer: Any) -> Self:
        """Tokenize a document.

        Raises:
            UnsupportedModelError: The tokenizer cannot say which characters a token came from.
        """
        if not getattr(tokenizer, "is_fast", False):
            raise UnsupportedModelError(
                f"The tokenizer {type(tokenizer).__name__} does not tell where its tokens begin in the text.",
                "Use a model that has a fast tokenizer (tokenizer.json).",
            )
        text = document.text
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        offsets = np.asarray(encoded["offset_mapping"], dtype=np.int64).reshape(-1, 2)
        token_starts = np.maximum.accumulate(offsets[:, 0])
        characters = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
        starts = np.concatenate(([0], np.flatnonzero(characters == ord("\n")) + 1))
        tokens = np.searchsorted(token_starts, starts)
        # Blank lines begin at the same token as the line that follows; the last of them is where its text begins.
        last = np.append(tokens[1:] != tokens[:-1], True) & (tokens < len(token_starts))
        return cls(
            document,
            token_starts,
            np.append(tokens[last], len(token_starts)),
            np.append(starts[last], len(text)),
        )


@dataclass(frozen=True)
class TokenizedCorpus:
    """A corpus whose documents are tokenized, ready to be cut."""

    corpus: Corpus
    """The corpus."""
    documents: tuple[TokenizedDocument, ...]
    """One for each document of the corpus, in order."""
    ends: Indices
    """`[num_documents]`: tokens of the documents up to and including each."""

    @property
    def num_tokens(self) -> int:
        """Tokens of all documents, headers not counted."""
        return int(self.ends[-1])

    @classmethod
    def build(cls, corpus: Corpus, tokenizer: Any) -> Self:
        """Tokenize every document of a corpus.

        Raises:
            CorpusError: The tokenizer finds no token in it.
            UnsupportedModelError: The tokenizer does not tell where its tokens begin.
        """
        documents = tuple(TokenizedDocument.build(document, tokenizer) for document in corpus.documents)
        ends = np.cumsum([document.num_tokens for document in documents], dtype=np.int64)
        if not len(ends) or not ends[-1]:
            raise CorpusError(f"Corpus {corpus.name!r} has no token.", "Add documents with text.")
        return cls(corpus, documents, ends)
