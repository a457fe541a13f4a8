"""Documents, what reads them, and the chunks that a model studies."""

from cartridge_core.corpus.chunking import Chunk, ChunkConfig, sample_chunk
from cartridge_core.corpus.corpus import Corpus
from cartridge_core.corpus.document import Document, Skipped, document_text
from cartridge_core.corpus.readers import read_corpus
from cartridge_core.corpus.tokenized import TokenizedCorpus

__all__ = [
    "Chunk",
    "ChunkConfig",
    "Corpus",
    "Document",
    "Skipped",
    "TokenizedCorpus",
    "document_text",
    "read_corpus",
    "sample_chunk",
]
