"""The thread that computes: prompts join running batches, every batch takes a step in turn."""

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from cartridge_core.inference.running_batch import Arrival, RunningBatch
from cartridge_core.models import BaseModel
from cartridge_core.prefix_kv import PrefixKV
from cartridge_core.rendering import turn_end_ids
from cartridge_core.serving.engine import FinishReason, Piece, TokenLogprob
from cartridge_core.serving.errors import EngineError
from cartridge_core.serving.sampling import Luck, choose
from cartridge_core.serving.sampling_params import SamplingParams
from cartridge_core.serving.text_stream import TextStream

log = logging.getLogger("cartridge.engine")

_READ_AT_ONCE = 256
"""Prompt tokens of one arrival that are read between two steps of those who write already."""
_READ_IN_ALL = 1024
"""Prompt tokens of all arrivals that are read between two steps, about."""
_LEAST_COST = 16
"""What reading a short prompt costs beside its tokens, in tokens."""
_ARRIVALS = 4
"""Long prompts read side by side: a short one does not wait for a long one."""


class Answer:
    """One answer to be written.

    Args:
        group: Answers of one group share a prefix.
        prefix: On the model's device and in its type.
        prompt: Token ids.
        params: How it is written.
        text: Turns its tokens into text.
        index: Which of its request's answers it is.
        deliver: Takes its pieces, or the error that ends it.
    """

    def __init__(
        self,
        group: str,
        prefix: PrefixKV,
        prompt: Sequence[int],
        params: SamplingParams,
        text: TextStream,
        index: int,
        deliver: Callable[[Piece | EngineError], None],
    ) -> None:
        self.group, self.prefix, self.prompt, self.params, self.index = group, prefix, prompt, params, index
        self.text, self.deliver = text, deliver
        self.luck = Luck(params.seed, index)
        self.num_tokens = 0
        self.cancelled = False
        """Set by anybody at any time; the answer leaves at the next step."""


class Scheduler(threading.Thread):
    """Writes answers, many at a time.

    Args:
        base: The model; its tokenizer is used by this thread alone.
        max_running: Answers written at once.
    """

    def __init__(self, base: BaseModel, max_running: int) -> None:
        super().__init__(name="engine", daemon=True)
        self._base, self._max_running = base, max_running
        self._ends = base.eos_ids | turn_end_ids(base.tokenizer)
        self._wake = threading.Condition()
        self._new: deque[Answer] = deque()
        self._closed = False
        self._waiting: deque[Answer] = deque()
        self._arriving: list[tuple[Answer, Arrival]] = []
        self._batches: dict[str, tuple[RunningBatch, list[Answer]]] = {}
        self.failure: str | None = None
        """Why it stopped, where it did not stop by itself."""

    @property
    def running(self) -> int:
        """Answers being written or about to be."""
        return len(self._arriving) + sum(len(answers) for _, answers in list(self._batches.values()))

    @property
    def waiting(self) -> int:
        """Answers not begun."""
        return len(self._new) + len(self._waiting)

    def submit(self, answers: Sequence[Answer]) -> None:
        """Add answers, from any thread.

        Raises:
            EngineError: The scheduler has stopped.
        """
        with self._wake:
            if self._closed:
                raise EngineError("The engine has stopped.", self.failure or "", retry_after=1.0)
            self._new.extend(answers)
            self._wake.notify()

    def close(self) -> None:
        """Stop; what is unfinished fails."""
        with self._wake:
            self._closed = True
            self._wake.notify()

    def run(self) -> None:
        """Work until closed."""
        try:
            with torch.inference_mode():
                while self._take():
                    self._admit()
                    for group in list(self._batches):
                        self._step(group)
        except Exception as error:  # the thread's boundary: nobody else can tell those who wait
            log.exception("the engine stopped")
            self.failure = f"{type(error).__name__}: {error}"
        with self._wake:
            self._closed = True
            left = [*self._new, *self._waiting, *(answer for answer, _ in self._arriving)]
            self._new.clear()
        left += [answer for _, answers in self._batches.values() for answer in answers]
        self._waiting.clear()
        self._arriving.clear()
        self._batches.clear()
        for answer in left:
            answer.deliver(EngineError("The engine has stopped.", "Ask again.", retry_after=1.0))

    def _take(self) -> bool:
        """Take what was submitted; sleep while there is nothing to do. False when it is over."""
        with self._wake:
            while not (self._closed or self._new or self._waiting or self._arriving or self._batches):
                self._wake.wait()
            self._waiting.extend(self._new)
            self._new.clear()
            return not self._closed

    def _admit(self) -> None:
        self._waiting = deque(answer for answer in self._waiting if not answer.cancelled)
        self._arriving = [pair for pair in self._arriving if not pair[0].cancelled]
        budget = _READ_IN_ALL
        for pair in list(self._arriving):
            budget -= self._read(*pair)
        while budget > 0 and self._waiting and len(self._arriving) < _ARRIVALS and self.running < self._max_running:
            answer = self._waiting.popleft()
            batch, _ = self._batches.setdefault(answer.group, (RunningBatch(self._base, answer.prefix), []))
            arrival = batch.arrival(answer.prompt)
            self._arriving.append((answer, arrival))
            budget -= self._read(answer, arrival)

    def _read(self, answer: Answer, arrival: Arrival) -> int:
        """Read on in a prompt, let it join when that is done; returns what it cost."""
        with self._guarded([answer]) as outcome:
            arrival.read(_READ_AT_ONCE)
            if arrival.done:
                batch, answers = self._batches[answer.group]
                batch.join(arrival)
                answers.append(answer)
        if outcome.failed or arrival.done:
            self._arriving.remove((answer, arrival))
        return max(_LEAST_COST, min(arrival.length, _READ_AT_ONCE))

    def _step(self, group: str) -> None:
        batch, answers = self._batches[group]
        expected = {answer.group for answer, _ in self._arriving}
        if not answers:
            if group not in expected:
                del self._batches[group]
            return
        with self._guarded(answers) as outcome:
            self._write(batch, answers)
        if outcome.failed:
            answers.clear()
        if not answers and group not in expected:
            # The whole batch goes, and its memory with it.
            del self._batches[group]
        elif not answers:
            self._batches[group] = (RunningBatch(self._base, batch.prefix), [])

    def _write(self, batch: RunningBatch, answers: list[Answer]) -> None:
        logits = batch.step()
        params = [answer.params for answer in answers]
        tokens = choose(logits, params, [answer.luck.draw() for answer in answers])
        logprobs = self._logprobs(logits, tokens, params)
        kept = []
        for row, (answer, token) in enumerate(zip(answers, tokens.tolist(), strict=True)):
            piece = self._piece(answer, token, logprobs.get(row))
            if not answer.cancelled:
                answer.deliver(piece)
            if piece.finish_reason is None and not answer.cancelled:
                kept.append(row)
        rows = torch.tensor(kept, dtype=torch.long, device=logits.device)
        batch.go_on(tokens[rows], rows)
        answers[:] = [answers[row] for row in kept]

    def _piece(self, answer: Answer, token: int, logprob: TokenLogprob | None) -> Piece:
        text = answer.text
        answer.num_tokens += 1
        ended = token in self._ends
        new = "" if ended else text.push(token)
        cut = answer.num_tokens >= answer.params.max_tokens
        if ended or (cut and not text.stopped):
            new += text.finish()
        reason: FinishReason | None = "stop" if ended or text.stopped else "length" if cut else None
        return Piece(new, answer.index, 1, (logprob,) if logprob and not ended else (), reason)

    def _logprobs(
        self, logits: torch.Tensor, tokens: torch.Tensor, params: Sequence[SamplingParams]
    ) -> dict[int, TokenLogprob]:
        rows = [row for row, param in enumerate(params) if param.logprobs is not None]
        if not rows:
            return {}
        scores = logits[rows].log_softmax(dim=-1)
        taken = scores.gather(1, tokens[rows][:, None])[:, 0].tolist()
        count = max(params[row].logprobs or 0 for row in rows)
        best, ids = scores.topk(count, dim=-1)
        return {
            row: TokenLogprob(
                self._word(int(tokens[row])),
                taken[place],
                tuple(
                    (self._word(token), value)
                    for token, value in zip(
                        ids[place, : params[row].logprobs].tolist(),
                        best[place, : params[row].logprobs].tolist(),
                        strict=True,
                    )
                ),
            )
            for place, row in enumerate(rows)
        }

    def _word(self, token: int) -> str:
        return str(self._base.tokenizer.decode([token], clean_up_tokenization_spaces=False))

    @contextmanager
    def _guarded(self, answers: Sequence[Answer]) -> Iterator["_Outcome"]:
        """Where the machine fails inside, these answers end and others go on."""
        outcome = _Outcome()
        try:
            yield outcome
        except RuntimeError as error:  # torch's own: out of memory and the like
            log.exception("a batch failed")
            outcome.failed = True
            for answer in answers:
                answer.deliver(EngineError("The engine failed while it wrote.", f"{type(error).__name__}."))


@dataclass
class _Outcome:
    failed: bool = False
