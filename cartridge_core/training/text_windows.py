"""Windows of the corpus's own text, for next-token training."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from cartridge_core.selfstudy.conversation import Targets


class WindowStream:
    """Random windows of a text, drawn anew for each step; a batch depends on the step alone."""

    def __init__(self, token_ids: Sequence[int], window_tokens: int, batch_size: int, seed: int) -> None:
        self._token_ids = np.asarray(token_ids, dtype=np.int32)
        self._window = min(window_tokens, len(self._token_ids))
        self._batch_size = batch_size
        self._seed = seed

    def batch(self, step: int) -> list[Targets]:
        """The windows of a step, counted from 0."""
        last = len(self._token_ids) - self._window
        # Starts are drawn beyond both ends and moved inside: else the first and last tokens would be seen too rarely.
        margin = self._window // 2
        starts = np.random.default_rng((self._seed, step)).integers(-margin, last + margin + 1, self._batch_size)
        return [next_token_targets(self._token_ids[s : s + self._window]) for s in np.clip(starts, 0, last)]


def covering_windows(token_ids: Sequence[int], window_tokens: int, most: int) -> list[Targets]:
    """Windows that predict every token of a text but the first once, the last window reaching back to be full.

    Args:
        token_ids: The text.
        window_tokens: Tokens of a window.
        most: Where there would be more windows, this many of them, evenly spread.
    """
    tokens = np.asarray(token_ids, dtype=np.int32)
    window = min(window_tokens, len(tokens))
    last = len(tokens) - window
    starts = np.unique(np.append(np.arange(0, last, window - 1), last))
    if len(starts) > most:
        starts = starts[np.linspace(0, len(starts) - 1, most).round().astype(np.int64)]
    return [next_token_targets(tokens[start : start + window]) for start in starts]


def next_token_targets(token_ids: npt.NDArray[np.int32]) -> Targets:
    """A text whose every token but the first is to be predicted: the teacher is certain of it."""
    predicted = token_ids[1:]
    return Targets(
        token_ids=token_ids,
        assistant_mask=np.arange(len(token_ids)) > 0,
        topk_ids=predicted[:, None],
        topk_logprobs=np.zeros((len(predicted), 1), dtype=np.float32),
        tail_logprob=np.full(len(predicted), -np.inf, dtype=np.float32),
    )
