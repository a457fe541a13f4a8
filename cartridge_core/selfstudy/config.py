"""How a corpus is studied."""

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from cartridge_core.corpus.chunking import ChunkConfig
from cartridge_core.selfstudy.seeds import SEED_FAMILIES


class SelfStudyConfig(BaseModel):
    """How many conversations are made, about what, and how they are generated."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_conversations: int = Field(default=2048, gt=0)
    """Conversations that are begun; the ones dropped on the way are counted."""
    conversations_per_chunk: int = Field(default=32, gt=0)
    """Conversations that share one chunk, which the teacher reads once for all of them."""
    families: tuple[str, ...] = tuple(SEED_FAMILIES)
    """Seed families, taking turns in this order."""
    focus_words: int | None = Field(default=24, gt=0)
    """The asker is pointed at one sentence of the chunk, cut to so many words, so that every part is asked about; None
    leaves the choice to it."""
    temperature_a: float = Field(default=0.6, ge=0.0)
    """Sampling temperature of the asker (arXiv 2506.06266 samples at 0.6)."""
    temperature_b: float = Field(default=0.0, ge=0.0)
    """Sampling temperature of the answerer; 0 is greedy, as in the paper."""
    max_tokens_a: int = Field(default=128, gt=0)
    """Most tokens of a question; a longer one is unfinished and dropped."""
    max_tokens_b: int = Field(default=512, gt=0)
    """Most tokens of an answer; a longer one is unfinished and dropped."""
    top_k: int = Field(default=20, gt=0)
    """Most likely tokens whose log-probabilities are kept at each answer token; the rest is kept as one tail mass."""
    chunk: ChunkConfig = ChunkConfig()
    """How long a chunk is."""
    chunks_per_shard: int = Field(default=4, gt=0)
    """Chunks whose conversations are written together; a killed run repeats at most this much work."""
    seed: int = 0
    """Seed of every draw."""

    @model_validator(mode="after")
    def _known_families(self) -> Self:
        check_families(self.families)
        return self

    @property
    def num_chunks(self) -> int:
        """Chunks that are studied."""
        return -(-self.num_conversations // self.conversations_per_chunk)

    @property
    def num_shards(self) -> int:
        """Files that the conversations are written to."""
        return -(-self.num_chunks // self.chunks_per_shard)

    def samples_of_chunk(self, index: int) -> range:
        """Sample indices of the index-th chunk's conversations."""
        first = index * self.conversations_per_chunk
        return range(first, min(first + self.conversations_per_chunk, self.num_conversations))

    def chunks_of_shard(self, index: int) -> range:
        """Indices of the chunks in the index-th shard."""
        first = index * self.chunks_per_shard
        return range(first, min(first + self.chunks_per_shard, self.num_chunks))


def check_families(families: tuple[str, ...]) -> None:
    """Refuse names that are no seed family.

    Raises:
        ValueError: No family is named, one twice, or one that does not exist.
    """
    if not families or len(set(families)) != len(families):
        raise ValueError(f"families must be named once each, not {families}")
    if unknown := sorted(set(families) - set(SEED_FAMILIES)):
        raise ValueError(f"unknown seed families {unknown}; there are {sorted(SEED_FAMILIES)}")
