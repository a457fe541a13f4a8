"""Text of an answer while it is written: whole characters only, and nothing that may be the start of a stop text."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BROKEN = "\ufffd"
_LONGEST_CHARACTER = 16
"""Tokens after which a character that is still broken is given up as broken."""


class TextStream:
    """Turns tokens into text as they come.

    Args:
        tokenizer: Decodes.
        stop: Texts that end the answer.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", stop: Sequence[str] = ()) -> None:
        self._tokenizer, self._stop = tokenizer, tuple(stop)
        self._ids: list[int] = []
        # Decoding starts at `_context`; text up to `_said` was given out. A token's text depends on the one before.
        self._context = self._said = 0
        self._held = ""
        self.stopped = False
        """Whether a stop text came; what followed it was dropped."""

    def push(self, token: int) -> str:
        """The text that is certain after one token more."""
        self._ids.append(token)
        return self._release(self._decoded(final=False), final=False)

    def finish(self) -> str:
        """The rest of the text."""
        return self._release(self._decoded(final=True), final=True)

    def _decoded(self, final: bool) -> str:
        before = self._text(self._context, self._said)
        now = self._text(self._context, len(self._ids))
        if len(now) <= len(before):
            return ""
        pending = len(self._ids) - self._said
        if now.endswith(_BROKEN) and not final and pending < _LONGEST_CHARACTER:
            return ""
        self._context, self._said = self._said, len(self._ids)
        return now[len(before) :]

    def _text(self, start: int, end: int) -> str:
        ids = self._ids[start:end]
        return str(self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _release(self, new: str, final: bool) -> str:
        if self.stopped:
            return ""
        text = self._held + new
        found = [place for place in (text.find(stop) for stop in self._stop) if place >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        held = 0 if final else max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` begins with."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
