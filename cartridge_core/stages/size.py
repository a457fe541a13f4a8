"""How large a Cartridge to train where nobody says."""

from __future__ import annotations

from cartridge_core.corpus import TokenizedCorpus
from cartridge_core.settings import Settings
from cartridge_core.stages.ingest import IngestedCorpus
from cartridge_core.stages.model import model_name

SHARE_OF_CORPUS = 1 / 20
"""Length of a Cartridge against its corpus: with room to spare (arXiv 2506.06266 reports 1/38.6 at equal quality)."""

SMALLEST, LARGEST = 16, 2048
"""Bounds in virtual tokens; the paper's largest setting is 2,048, for 128k tokens and more."""


def corpus_tokens(settings: Settings, corpus: IngestedCorpus, model: str | None) -> int:
    """Tokens of the corpus's documents under the base model's tokenizer."""
    from cartridge_core.models import load_tokenizer

    return TokenizedCorpus.build(corpus.load(), load_tokenizer(model_name(settings, model))).num_tokens


def default_num_tokens(settings: Settings, corpus: IngestedCorpus, model: str | None = None) -> int:
    """Virtual tokens for a corpus: a twentieth of its length, between 16 and 2,048, never more than it has."""
    length = corpus_tokens(settings, corpus, model)
    return min(length, max(SMALLEST, min(LARGEST, round(length * SHARE_OF_CORPUS))))
