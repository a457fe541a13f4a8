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
    one fills it up: no batch is smaller. An epoch has as many places as there are conversations. Without weights each
    stands in one of them; with weights each stands in as many as its weight says; chance rounds a fraction up
    or down, anew in every epoch (systematic sampling).
    """

    def __init__(
        self,
        examples: Sequence[Example],
        batch_size: int,
        seed: int,
        weights: npt.NDArray[np.float64] | None = None,
    ) -> None:
        """Remember the conversations.

        Args:
            examples: The conversations.
            batch_size: How many make a batch; never more than there are.
            seed: Of all orders.
            weights: `[n]`, above 0: how often each is drawn, relative to the others. None: all alike.
        """
        self._examples = examples
        self._batch_size = min(batch_size, len(examples))
        self._seed = seed
        self._weights = weights
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
            self._orders[epoch] = self._order(epoch)
        return self._examples[self._orders[epoch][place]]

    def _order(self, epoch: int) -> npt.NDArray[np.int64]:
        generator, count = np.random.default_rng((self._seed, epoch)), len(self._examples)
        order = generator.permutation(count)
        if self._weights is None:
            return order
        ends = self._weights[order].cumsum()
        places = (generator.random() + np.arange(count)) * (ends[-1] / count)
        drawn = order[np.searchsorted(ends, places, side="right").clip(max=count - 1)]
        return generator.permutation(drawn)
