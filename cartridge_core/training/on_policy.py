"""The final on-policy phase: the Cartridge answers the study's questions, the teacher says what it would have said.

A Cartridge that only ever continued the teacher's answers does not know what to do after a word of its own that the
teacher would not have said (arXiv 2306.13649).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from cartridge_core.corpus import Corpus
from cartridge_core.inference.generate import Generation, GenerationConfig, generate
from cartridge_core.models import BaseModel
from cartridge_core.selfstudy.config import SelfStudyConfig
from cartridge_core.selfstudy.conversation import Conversation, Targets
from cartridge_core.selfstudy.seeding import derive_seed
from cartridge_core.training.config import TrainingConfig
from cartridge_core.training.conversation_stream import ConversationStream
from cartridge_core.training.layer_modes import eager_layers
from cartridge_core.training.ranks import Ranks
from cartridge_core.training.shared_batch import shared_batch
from cartridge_core.training.state import TrainingState
from cartridge_core.training.teacher_context import TeacherContext
from cartridge_core.training.teacher_scores import teacher_targets


@dataclass(frozen=True)
class OnPolicyBatch:
    """What the student said in one step, and what the teacher made of it."""

    examples: list[Targets]
    """The study's questions with the student's answers and the teacher's distributions."""
    num_unfinished: int
    """Answers that did not end within their limit. They are learnt from like the others: what the teacher would have
    said at each of their tokens, the end included, is known all the same."""


class OnPolicyStream:
    """Batches of the student's own answers.

    A batch depends on the configuration's seed, the step and the masters alone, so that a killed run draws it again.
    """

    def __init__(
        self,
        base: BaseModel,
        corpus: Corpus,
        conversations: Sequence[Conversation],
        study: SelfStudyConfig,
        config: TrainingConfig,
        weights: npt.NDArray[np.float64] | None = None,
    ) -> None:
        """Remember the study, and make sure that its chunks can be drawn again.

        Args:
            base: Student and teacher: the one has the Cartridge in front of a question, the other the chunk.
            corpus: What was studied.
            conversations: Whose questions are asked, in the order of the ordinary steps.
            study: How it was studied; an answer gets as many tokens as there, a distribution as many outcomes.
            config: Batch size, temperature, lengths, seed.
            weights: How often each conversation is drawn, as in the ordinary steps.

        Raises:
            DatasetError: The conversations are of another study or corpus.
        """
        self._base, self._study, self._config = base, study, config
        self._context = TeacherContext(base, corpus, study)
        for conversation in {conversation.chunk_id: conversation for conversation in conversations}.values():
            self._context.chunk(conversation)
        self._stream = ConversationStream(conversations, config.batch_size, config.seed, weights)

    def batch(self, state: TrainingState, ranks: Ranks) -> OnPolicyBatch:
        """The examples of the state's next step, the same on every rank; each rank makes its share.

        Args:
            state: Step, masters (not their average), and how much passes through the model at once.
            ranks: Who answers. Those that must pass the model in lockstep all make the whole batch.

        Raises:
            TrainingError: Memory ran out again after the micro-batch had been halved.
        """
        asked = self._stream.batch(state.step)
        turns = [conversation.token_ids[~conversation.assistant_mask].tolist() for conversation in asked]
        every = range(len(asked))
        alone = ranks.count == 1 or ranks.lockstep
        own = list(every) if alone else ranks.share(every)
        longest = max(map(len, turns))

        def make(max_tokens: int) -> tuple[dict[int, Targets], int]:
            said = self._answers(state, own, turns, max(max_tokens // longest, 1))
            return self._judged(asked, turns, said, max_tokens)

        with eager_layers(self._base):
            made, unfinished = (
                make(state.micro_batch.tokens)
                if ranks.lockstep or not own
                else state.micro_batch.run(make, most=longest * len(own))
            )
        if alone:
            return OnPolicyBatch([made[place] for place in every], unfinished)
        examples = shared_batch(turns, made, self._study.top_k, ranks, self._base.device)
        return OnPolicyBatch(examples, int(ranks.total(unfinished, self._base.device)))

    def _answers(
        self, state: TrainingState, own: Sequence[int], turns: Sequence[Sequence[int]], batch_size: int
    ) -> dict[int, Generation]:
        """What the student says, by place in the batch."""
        with torch.no_grad():
            prefix = state.prefix.prefix()
        limits = GenerationConfig(
            max_new_tokens=self._study.max_tokens_b, temperature=self._config.on_policy_temperature
        )
        seeds = [derive_seed(self._config.seed, "on_policy", state.step, place) for place in own]
        prompts = [turns[place] for place in own]
        said = generate(self._base, prefix, prompts, limits, seeds, batch_size=batch_size)
        return dict(zip(own, said, strict=True))

    def _judged(
        self,
        asked: Sequence[Conversation],
        turns: Sequence[Sequence[int]],
        said: dict[int, Generation],
        max_tokens: int,
    ) -> tuple[dict[int, Targets], int]:
        """The answers as the teacher sees them, chunk by chunk, and how many did not end within their limit."""
        judged: dict[int, Targets] = {}
        unfinished = 0
        for chunk_id in dict.fromkeys(asked[place].chunk_id for place in said):
            places = [place for place in said if asked[place].chunk_id == chunk_id]
            prefix = self._context.prefix(asked[places[0]])
            # The last token is predicted but never read.
            room = self._base.max_positions - prefix.next_position + 1
            if self._config.row_tokens is not None:
                room = min(room, self._config.row_tokens + 1)
            answers = [said[place].token_ids[: room - len(turns[place])] for place in places]
            for place, answer in zip(places, answers, strict=True):
                unfinished += len(answer) < len(said[place].token_ids) or not said[place].finished
            examples = teacher_targets(
                self._base,
                prefix,
                [turns[place] for place in places],
                answers,
                self._study.top_k,
                max_tokens,
                self._config.loss_chunk_tokens,
            )
            judged.update(zip(places, examples, strict=True))
        return judged, unfinished
