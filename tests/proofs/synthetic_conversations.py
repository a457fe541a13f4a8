"""Conversations of random tokens with random teachers, of the lengths that a study has."""

from dataclasses import dataclass

import numpy as np

from cartridge_core.selfstudy.conversation import Targets


@dataclass(frozen=True)
class SyntheticConversations:
    """An endless supply of batches; a batch depends on the step alone."""

    vocab_size: int
    """Width of the logits."""
    batch_size: int = 32
    """Conversations a step."""
    prompt_tokens: tuple[int, int] = (32, 512)
    """Shortest and longest user turn."""
    answer_tokens: tuple[int, int] = (64, 1024)
    """Shortest and longest answer (arXiv 2506.06266: at most 1,024)."""
    top_k: int = 20
    """Tokens of the teacher's distributions."""

    def batch(self, step: int) -> list[Targets]:
        """The conversations of a step."""
        rng = np.random.default_rng((7, step))
        return [self._one(rng) for _ in range(self.batch_size)]

    def _one(self, rng: np.random.Generator) -> Targets:
        prompt = int(rng.integers(self.prompt_tokens[0], self.prompt_tokens[1] + 1))
        answer = int(rng.integers(self.answer_tokens[0], self.answer_tokens[1] + 1))
        # Distinct within a row: consecutive tokens from a random one on.
        first = rng.integers(0, self.vocab_size - self.top_k, (answer, 1))
        shares = rng.dirichlet(np.ones(self.top_k + 1), answer)
        return Targets(
            token_ids=rng.integers(0, self.vocab_size, prompt + answer).astype(np.int32),
            assistant_mask=np.arange(prompt + answer) >= prompt,
            topk_ids=(first + np.arange(self.top_k)).astype(np.int32),
            topk_logprobs=np.log(np.clip(shares[:, :-1], 1e-9, 1)).astype(np.float32),
            tail_logprob=np.log(np.clip(shares[:, -1], 1e-9, 1)).astype(np.float32),
        )
