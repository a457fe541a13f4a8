"""The conversations of a study in memory, ready to be trained on."""

from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cartridge_core.errors import BaseModelMismatchError, DatasetError
from cartridge_core.manifest import BaseModelIdentity
from cartridge_core.selfstudy.conversation import Conversation
from cartridge_core.selfstudy.manifest import DatasetManifest
from cartridge_core.selfstudy.question_key import question_key
from cartridge_core.selfstudy.seeding import derive_seed
from cartridge_core.selfstudy.shard import ShardColumns, read_kept

__all__ = ["Conversation", "ConversationDataset", "DatasetManifest"]


class ConversationDataset(Sequence[Conversation]):
    """Kept conversations of a study, or some of them.

    The arrays are shared between a dataset and its parts; a `Conversation` holds views into them.

    Attributes:
        manifest: Where the conversations come from and what was dropped.
        lengths: `[n]` int64, tokens of each conversation.
    """

    def __init__(self, manifest: DatasetManifest, columns: ShardColumns, rows: npt.NDArray[np.int64]) -> None:
        self.manifest = manifest
        self._columns = columns
        self._rows = rows
        self._token_starts = np.concatenate(([0], np.cumsum(columns.token_counts)))
        self._target_starts = np.concatenate(([0], np.cumsum(columns.target_counts)))
        self.lengths: npt.NDArray[np.int64] = columns.token_counts[rows]

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read a complete dataset and check every file against its digest.

        Raises:
            DatasetError: The dataset is unfinished, a file is missing or changed, or it is of another format.
        """
        folder = Path(folder)
        manifest = DatasetManifest.load(folder)
        if damaged := manifest.damaged_files(folder):
            raise DatasetError(
                f"{folder} does not match its manifest: {', '.join(damaged)} missing or changed.",
                "Run the study again; it makes what is missing.",
            )
        columns = _concatenate([read_kept(folder / entry.file) for entry in manifest.shards])
        if len(columns.token_counts) != manifest.num_conversations:
            raise DatasetError(
                f"{folder} holds {len(columns.token_counts)} conversations, its manifest says "
                f"{manifest.num_conversations}.",
                "Make the dataset again.",
            )
        return cls(manifest, columns, np.arange(manifest.num_conversations))

    def __len__(self) -> int:
        """Conversations in it."""
        return len(self._rows)

    def __getitem__(self, index: int) -> Conversation:  # type: ignore[override]  # parts are made with `select`
        """One conversation; its arrays are views and must not be written to."""
        row = int(self._rows[index])
        columns = self._columns
        tokens = slice(self._token_starts[row], self._token_starts[row + 1])
        targets = slice(self._target_starts[row], self._target_starts[row + 1])
        texts = {name: columns.texts[name][row].as_py() for name in columns.texts.column_names}
        return Conversation(
            token_ids=columns.token_ids[tokens],
            assistant_mask=columns.assistant_mask[tokens],
            topk_ids=columns.topk_ids[targets],
            topk_logprobs=columns.topk_logprobs[targets],
            tail_logprob=columns.tail_logprob[targets],
            sample_index=texts["sample_index"],
            family=texts["family"],
            chunk_id=texts["chunk_id"],
            seed=texts["seed"],
            seed_prompt=texts["seed_prompt"],
            messages=(
                {"role": "user", "content": texts["question"]},
                {"role": "assistant", "content": texts["answer"]},
            ),
        )

    def __iter__(self) -> Iterator[Conversation]:
        """The conversations in order."""
        return (self[index] for index in range(len(self)))

    def questions(self) -> list[str]:
        """The user's turn of each conversation, in order."""
        return self._texts("question")

    def chunk_ids(self) -> list[str]:
        """The chunk each conversation is about, in order."""
        return self._texts("chunk_id")

    def unfinished(self) -> dict[str, int]:
        """How many conversations of the study did not end within their limits, by seed family."""
        return self.manifest.unfinished

    def select(self, indices: Sequence[int] | npt.NDArray[np.int64]) -> "ConversationDataset":
        """The conversations at these places, in this order."""
        return ConversationDataset(self.manifest, self._columns, self._rows[np.asarray(indices, dtype=np.int64)])

    def split(self, held_out_fraction: float, seed: int = 0) -> tuple["ConversationDataset", "ConversationDataset"]:
        """Part the conversations by question, so that no question of one part is in the other.

        Args:
            held_out_fraction: Share of the distinct questions that are held out, in [0, 1). When it is not zero, at
                least one question is held out and at least one is not.
            seed: Which ones.

        Returns:
            The conversations to train on, and the held-out ones.

        Raises:
            DatasetError: The fraction is out of range, or there is only one question to part.
        """
        if not 0 <= held_out_fraction < 1:
            raise DatasetError(f"held_out_fraction={held_out_fraction} is not in [0, 1).")
        keys = [question_key(question) for question in self.questions()]
        distinct = sorted(set(keys), key=lambda key: (derive_seed(seed, "split", key), key))
        if held_out_fraction and len(distinct) < 2:
            raise DatasetError(
                f"{len(distinct)} distinct questions cannot be parted.",
                "Study with more conversations, or hold out none.",
            )
        count = min(max(round(held_out_fraction * len(distinct)), 1), len(distinct) - 1) if held_out_fraction else 0
        held_out = set(distinct[:count])
        is_held_out = np.array([key in held_out for key in keys], dtype=bool)
        return self.select(np.flatnonzero(~is_held_out)), self.select(np.flatnonzero(is_held_out))

    def check_base_model(self, identity: BaseModelIdentity) -> None:
        """Refuse another model than the one whose tokens and probabilities these are.

        Raises:
            BaseModelMismatchError: Model, revision or tokenizer differ.
        """
        wanted = self.manifest.base_model
        if wanted != identity:
            differing = [name for name in type(wanted).model_fields if getattr(wanted, name) != getattr(identity, name)]
            raise BaseModelMismatchError(
                f"The conversations were made with {wanted.id} (revision {wanted.revision}), not with {identity.id} "
                f"(revision {identity.revision}); they differ in {', '.join(differing)}.",
                f"Load {wanted.id} at revision {wanted.revision}, or study the corpus again with {identity.id}.",
            )

    def _texts(self, name: str) -> list[str]:
        texts: list[str] = self._columns.texts[name].take(pa.array(self._rows)).to_pylist()
        return texts


def _concatenate(shards: Sequence[ShardColumns]) -> ShardColumns:
    """Several shards' conversations behind each other; a shard without any has no k of its own."""
    filled = [shard for shard in shards if len(shard.token_counts)]
    widths = {shard.topk_ids.shape[1] for shard in filled}
    if len(widths) != 1:
        raise DatasetError(f"The shards keep different numbers of tokens at a position: {sorted(widths)}.")
    arrays = {
        field.name: np.concatenate([getattr(shard, field.name) for shard in filled])
        for field in fields(ShardColumns)
        if field.name != "texts"
    }
    return ShardColumns(texts=pa.concat_tables([shard.texts for shard in filled]).combine_chunks(), **arrays)
