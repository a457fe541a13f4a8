"""Deep context distillation: the student's hidden states are drawn towards the teacher's (arXiv 2503.08727).

The teacher is the base model itself with the chunk in its context, so that layer by layer it is known what the answer's
tokens should have become. Its states are computed when a chunk is met for the first time, and kept.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from cartridge_core.corpus import Corpus
from cartridge_core.errors import TrainingError
from cartridge_core.models import BaseModel
from cartridge_core.selfstudy.config import SelfStudyConfig
from cartridge_core.selfstudy.conversation import Conversation, Targets
from cartridge_core.training.config import TrainingConfig
from cartridge_core.training.packed_attention import packed_hidden
from cartridge_core.training.packed_rows import PackedRows, pack_rows
from cartridge_core.training.precision import training_precision
from cartridge_core.training.sharding import decoder_layers
from cartridge_core.training.teacher_context import TeacherContext

MAX_BYTES = 4 << 30
"""Of states that are kept in memory."""


@contextmanager
def layer_outputs(base: BaseModel, layers: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """What some layers give out in the forward passes inside, by layer: the newest pass's, with its graph."""
    seen: dict[int, Tensor] = {}
    modules = decoder_layers(base.model)

    def keeper(layer: int) -> Any:
        def keep(module: torch.nn.Module, inputs: Any, output: Any) -> None:
            seen[layer] = output[0] if isinstance(output, tuple) else output

        return keep

    handles = [modules[layer].register_forward_hook(keeper(layer)) for layer in layers]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def states_at(seen: dict[int, Tensor], layers: Sequence[int], rows: PackedRows) -> list[Tensor]:
    """Each layer's output at the rows' predicting places, `[m, hidden size]`; of Gemma 3n four copies in a row."""
    at = rows.read_predicting
    return [seen[layer].index_select(-2, at).movedim(-2, 0).flatten(1) for layer in layers]


class TeacherStates:
    """The teacher's hidden states on the answers of a study.

    Attributes:
        layers: Whose outputs are compared.
    """

    def __init__(
        self,
        base: BaseModel,
        corpus: Corpus,
        conversations: Sequence[Conversation],
        study: SelfStudyConfig,
        config: TrainingConfig,
    ) -> None:
        """Remember the study.

        Args:
            base: The teacher's model, which is the student's.
            corpus: What was studied.
            conversations: Those that are trained on.
            study: How it was studied.
            config: Which layers, and how much passes through the model at once.

        Raises:
            TrainingError: A layer does not exist, or the states would take more than `MAX_BYTES`.
            DatasetError: The conversations are of another study or corpus.
        """
        depth = len(decoder_layers(base.model))
        self.layers = tuple(range(depth)) if config.hidden_state_layers is None else config.hidden_state_layers
        if unknown := [layer for layer in self.layers if layer >= depth]:
            raise TrainingError(
                f"hidden_state_layers={list(self.layers)}: {base.identity.id} has no layer {unknown[0]}.",
                f"Name layers from 0 to {depth - 1}.",
            )
        width: int = base.model.config.get_text_config(decoder=True).hidden_size
        tokens = sum(len(conversation.tail_logprob) for conversation in conversations)
        if (needed := tokens * len(self.layers) * width * 2) > MAX_BYTES:
            raise TrainingError(
                f"The hidden states of {tokens:,} answer tokens in {len(self.layers)} layers take {needed / 2**30:.1f} "
                f"GiB, and at most {MAX_BYTES / 2**30:.0f} are kept.",
                "Name fewer hidden_state_layers, or train on fewer conversations.",
            )
        self._base, self._config = base, config
        self._context = TeacherContext(base, corpus, study)
        self._of_chunk: dict[str, list[Conversation]] = {}
        for conversation in conversations:
            self._of_chunk.setdefault(conversation.chunk_id, []).append(conversation)
        for about in self._of_chunk.values():
            self._context.chunk(about[0])
        self._kept: dict[int, Tensor] = {}

    def prepare(self, examples: Sequence[Targets]) -> None:
        """Let the teacher read what it has not read yet, while layers are passed in the ordinary way."""
        for example in examples:
            if isinstance(example, Conversation):
                self._states(example)

    def distance(self, seen: dict[int, Tensor], rows: PackedRows, examples: Sequence[Targets]) -> Tensor | None:
        """How far the student's states are from the teacher's, summed over the rows' predicted tokens.

        A token's distance is `|h_student - h_teacher|_1 / |h_teacher|_1`, the mean over layers.

        Args:
            seen: The student's, from `layer_outputs`.
            rows: What passed through the model.
            examples: What `rows` was packed from.

        Returns:
            A scalar with gradient; None for examples that the teacher did not answer itself (the on-policy phase's).
        """
        members = [examples[place] for place in rows.members]
        if not all(isinstance(member, Conversation) for member in members):
            return None
        wanted = torch.cat([self._states(member) for member in members if isinstance(member, Conversation)])
        total = torch.zeros((), device=self._base.device)
        for index, student in enumerate(states_at(seen, self.layers, rows)):
            teacher = wanted[:, index].to(student.device, torch.float32)
            gap = (student.float() - teacher).abs().sum(dim=1) / teacher.abs().sum(dim=1).clamp(min=1e-6)
            total = total + gap.sum() / len(self.layers)
        return total

    def _states(self, conversation: Conversation) -> Tensor:
        """`[m, layers, width]` in bf16, on the CPU."""
        if conversation.sample_index not in self._kept:
            self._read(self._of_chunk[conversation.chunk_id])
        return self._kept[conversation.sample_index]

    @torch.no_grad()
    def _read(self, about: Sequence[Conversation]) -> None:
        """Let the teacher read all conversations about a chunk."""
        prefix = self._context.prefix(about[0])
        for rows in pack_rows(about, self._config.micro_batch_tokens, self._base.device):
            with training_precision(self._base, self._config), layer_outputs(self._base, self.layers) as seen:
                packed_hidden(self._base, prefix, rows)
            states = torch.stack(states_at(seen, self.layers, rows), dim=1).to("cpu", torch.bfloat16)
            lengths = [len(about[place].tail_logprob) for place in rows.members]
            for place, part in zip(rows.members, states.split(lengths), strict=True):
                self._kept[about[place].sample_index] = part.clone()
