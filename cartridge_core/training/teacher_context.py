"""What the teacher had read when it answered: the chunk that a conversation is about, read again."""

from collections import OrderedDict

from cartridge_core.corpus import Corpus
from cartridge_core.corpus.chunking import Chunk
from cartridge_core.corpus.tokenized import TokenizedCorpus
from cartridge_core.errors import DatasetError
from cartridge_core.inference.prefix import prefill
from cartridge_core.models import BaseModel
from cartridge_core.prefix_kv import PrefixKV
from cartridge_core.rendering import prefix_token_ids
from cartridge_core.selfstudy.chunk_study import draw_chunk
from cartridge_core.selfstudy.config import SelfStudyConfig
from cartridge_core.selfstudy.conversation import Conversation

MAX_KEPT = 8
"""Chunks whose keys and values stay in memory in any case."""
MAX_KEPT_BYTES = 2**29
"""Bytes of keys and values up to which more chunks stay: reading one again takes longer than what it is read for."""


class TeacherContext:
    """Keys and values of the chunks of a study.

    A study records a chunk by its place only; text and place follow from the corpus and the study's configuration.
    """

    def __init__(self, base: BaseModel, corpus: Corpus, study: SelfStudyConfig) -> None:
        """Remember the study.

        Args:
            base: The teacher's model.
            corpus: What was studied.
            study: How.
        """
        self._base, self._study = base, study
        self._corpus = TokenizedCorpus.build(corpus, base.tokenizer)
        self._read: OrderedDict[str, PrefixKV] = OrderedDict()

    def chunk(self, conversation: Conversation) -> Chunk:
        """The chunk that a conversation is about.

        Raises:
            DatasetError: The conversation is of another study or corpus.
        """
        index = conversation.sample_index // self._study.conversations_per_chunk
        chunk = draw_chunk(self._corpus, self._study, index)
        if chunk.id != conversation.chunk_id:
            raise DatasetError(
                f"Conversation {conversation.sample_index} is about chunk {conversation.chunk_id}, where this study of "
                f"this corpus has {chunk.id}.",
                "Study the corpus again.",
            )
        return chunk

    def prefix(self, conversation: Conversation) -> PrefixKV:
        """What stood in front of a conversation when the teacher answered; conversations of a chunk share it."""
        key = conversation.chunk_id
        if key not in self._read:
            kept_bytes = sum(prefix.kv_bytes(self._base.dtype) for prefix in self._read.values())
            if len(self._read) >= MAX_KEPT and kept_bytes >= MAX_KEPT_BYTES:
                self._read.popitem(last=False)
            token_ids = prefix_token_ids(self._base.tokenizer, self.chunk(conversation).prompt_text)
            self._read[key] = prefill(self._base, token_ids)
        self._read.move_to_end(key)
        return self._read[key]
