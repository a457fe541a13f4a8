"""The order in which conversations are trained on."""

from collections.abc import Sequence
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

from cartridge_core.selfstudy.conversation import Targets

Example = TypeVar("Example", bound=Targets)


class ConversationStream(Generic[Example]):
    """Endless shuffled epochs, cut into batches of one size.

    A batch depends on the step alone, so a run can be taken up at any step. Where an epoch ends inside a batch the next
    one fills it up: no conversation is left out, and no batch is smaller.
    """

    def __init__(self, examples: Sequence[Example], batch_size: int, seed: int) -> None:
        self._examples = examples
        self._batch_size = min(batch_size, len(examples))
        self._seed = seed
        self._orders: dict[int, npt.NDArray[np.int64]] = {}

    def batch(self, step: int) -> list[Example]:
        """The conversations of a step, counted from 0."""
        first = step * self._batch_size
        return [self._at(position) for position in range(first, first + self._batch_size)]

    def _at(self, position: int) -> Example:
        epoch, place = divmod(position, len(self._examples))
        if epoch not in self._orders:
            # A batch spans two epochs at most, so older orders are not asked for again.
            self._orders = {e: order for e, order in self._orders.items() if e == epoch - 1}
            self._orders[epoch] = np.random.default_rng((self._seed, epoch)).permutation(len(self._examples))
        return self._examples[self._orders[epoch][place]]
