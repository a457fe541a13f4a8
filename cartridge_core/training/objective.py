"""What a Cartridge learns: each objective turns its source into examples of one form."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from cartridge_core.corpus import Corpus
from cartridge_core.dataset import ConversationDataset
from cartridge_core.errors import CorpusError, DatasetError
from cartridge_core.models import BaseModel
from cartridge_core.progress import Progress, no_progress
from cartridge_core.selfstudy.conversation import Targets
from cartridge_core.training.balance import balanced_weights
from cartridge_core.training.config import TrainingConfig
from cartridge_core.training.conversation_stream import ConversationStream
from cartridge_core.training.hidden_states import TeacherStates
from cartridge_core.training.on_policy import OnPolicyStream
from cartridge_core.training.packed_rows import fitting
from cartridge_core.training.text_windows import WindowStream, covering_windows


class ExampleStream(Protocol):
    """An endless supply of batches."""

    def batch(self, step: int) -> Sequence[Targets]:
        """The examples of a step, counted from 0; always the same ones."""
        ...


@dataclass(frozen=True)
class Material:
    """What is learnt, and what the learning is judged by."""

    stream: ExampleStream
    """Batches to train on."""
    held_out: Sequence[Targets]
    """Examples that pick the best step."""
    num_examples: int
    """Different examples to train on; windows of text are counted by how many cover it."""
    num_unfit: int = 0
    """Conversations that are too long to be trained on, those held out included."""
    on_policy: OnPolicyStream | None = None
    """Batches of the final on-policy phase, where there is one."""
    teacher_states: TeacherStates | None = None
    """The teacher's hidden states, where they are matched."""


def split_study(
    dataset: ConversationDataset, config: TrainingConfig, max_positions: int
) -> tuple[ConversationDataset, ConversationDataset, int]:
    """A study's conversations to train on, the held-out ones, and how many are in neither because they do not fit."""
    fits = fitting(dataset.lengths, config, max_positions)
    num_unfit, fit = len(dataset) - int(fits.sum()), dataset.select(np.flatnonzero(fits))
    return *fit.split(min(config.held_out_fraction, config.max_held_out / len(fit)), config.seed), num_unfit


def distillation(
    base: BaseModel,
    corpus: Corpus,
    dataset: ConversationDataset | None,
    config: TrainingConfig,
    progress: Progress = no_progress,
) -> Material:
    """A study's answers, with the distributions of the teacher that read the text; some questions are held out.

    Conversations that do not fit a row or the positions behind the Cartridge are left out and counted.

    Raises:
        DatasetError: There are no conversations, or too few to hold any out; or the chunks that they are about, which
            an on-policy phase and the matching of hidden states need, cannot be drawn again.
        TrainingError: The hidden states of a layer that does not exist are asked for, or of too many.
    """
    if dataset is None or not len(dataset):
        raise DatasetError("There are no conversations to train on.", "Study the corpus first.")
    train, held_out, num_unfit = split_study(dataset, config, base.max_positions)
    weights = None
    if config.sampling == "balanced":
        weights = balanced_weights(
            [conversation.token_ids for conversation in train], _token_ids(base, corpus), config.seed, progress
        )
    stream = ConversationStream(list(train), config.batch_size, config.seed, weights)
    on_policy = None
    if config.on_policy_steps:
        on_policy = OnPolicyStream(base, corpus, list(train), dataset.manifest.plan.config, config, weights)
    states = None
    if config.hidden_state_weight:
        states = TeacherStates(base, corpus, list(train), dataset.manifest.plan.config, config)
    return Material(stream, list(held_out), len(train), num_unfit, on_policy, states)


def next_token(
    base: BaseModel,
    corpus: Corpus,
    dataset: ConversationDataset | None,
    config: TrainingConfig,
    progress: Progress = no_progress,
) -> Material:
    """The corpus's text, as a language model is trained on it.

    The best step is picked by the whole text: a text that was held out could only be guessed at.

    Raises:
        CorpusError: The corpus has fewer than two tokens.
    """
    token_ids = _token_ids(base, corpus)
    if len(token_ids) < 2:
        raise CorpusError(f"Corpus {corpus.name!r} has no text to predict.", "Add documents with text.")
    windows = covering_windows(token_ids, config.window_tokens, config.max_held_out)
    stream = WindowStream(token_ids, config.window_tokens, config.windows_per_batch, config.seed)
    return Material(stream, windows, -(-len(token_ids) // config.window_tokens))


def _token_ids(base: BaseModel, corpus: Corpus) -> list[int]:
    ids: list[int] = base.tokenizer(corpus.text(), add_special_tokens=False, verbose=False)["input_ids"]
    return ids


Objective = Callable[[BaseModel, Corpus, ConversationDataset | None, TrainingConfig, Progress], Material]
"""The last one is told about long preparations."""

OBJECTIVES: dict[str, Objective] = {"distillation": distillation, "next_token": next_token}
"""Name to objective; `TrainingConfig.objective` lists the names."""
