"""How much passes through the model at once, and what happens when memory does not suffice for it."""

import logging
from collections.abc import Callable
from typing import TypeVar

import torch

from cartridge_core.errors import TrainingError

logger = logging.getLogger(__name__)

T = TypeVar("T")


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error says that a device or the machine has no memory left."""
    # The allocator of CPU tensors raises a bare RuntimeError; its words are all there is to know it by.
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


class MicroBatch:
    """The most tokens that pass through the model at once; halved when memory runs out, once in a run."""

    def __init__(self, tokens: int, halved: bool = False) -> None:
        self.tokens = tokens
        self.halved = halved

    def run(self, work: Callable[[int], T], most: int) -> T:
        """Do work that passes up to so many tokens at once; after running out of memory, again with half as many.

        Half the tokens at once are twice as many passes: the sum that they are accumulated to stays the same.

        Args:
            work: Given the most tokens to pass at once. What it changed before it ran out of memory, it must undo when
                it is called again.
            most: Tokens of all the work; a larger micro-batch counts as one of this size, so that half of it is less.

        Raises:
            TrainingError: Memory ran out although the micro-batch had been halved.
        """
        problem = ""
        try:
            return work(self.tokens)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            problem = str(error).strip().splitlines()[0]
            if self.halved:
                raise TrainingError(
                    f"Memory ran out again, with micro-batches of {self.tokens} tokens: {problem}.",
                    "Set a smaller micro_batch_tokens, switch activation_checkpointing on, or train fewer tokens.",
                ) from error
        # Outside of the handler: the error holds on to the tensors of the pass that failed.
        before = min(self.tokens, most)
        self.tokens, self.halved = max(before // 2, 1), True
        logger.warning(
            "Memory ran out with micro-batches of %d tokens (%s). Training goes on with %d tokens and twice as many "
            "passes a step.",
            before,
            problem,
            self.tokens,
        )
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return self.run(work, most)
