"""Replies in OpenAI's format."""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from cartridge_core.serving.engine import FinishReason, Piece, TokenLogprob, ToolCall
from cartridge_core.serving.errors import ServingError

_LOWEST = -9999.0
"""Stands for minus infinity, which JSON lacks."""


def error_reply(error: ServingError) -> dict[str, Any]:
    """OpenAI's error envelope."""
    return {"error": {"message": str(error), "type": error.kind, "param": error.param, "code": error.code}}


@dataclass
class Usage:
    """What a request is charged for: what its user sent and got, not what stands in front."""

    prompt_tokens: int
    cartridge_tokens: int = 0
    """Virtual tokens of the Cartridge; part of no sum."""
    context_tokens: int = 0
    """Tokens of a corpus that stood in the prompt in the Cartridge's place; part of no sum."""
    completion_tokens: int = 0

    def as_json(self) -> dict[str, int]:
        """As `usage` of a reply."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "cartridge_tokens": self.cartridge_tokens,
            "context_tokens": self.context_tokens,
        }


@dataclass
class Choice:
    """One answer, gathered from its pieces."""

    text: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    tool_call: ToolCall | None = None

    def add(self, piece: Piece) -> None:
        """Take one more piece."""
        self.text += piece.text
        self.logprobs += piece.logprobs
        self.finish_reason = piece.finish_reason
        self.tool_call = piece.tool_call


class Reply(ABC):
    """Frames of one reply, whole or in chunks.

    Args:
        request_id: The request's id.
        model: As the caller wrote it.
        front: What stood in front (`Front.describe`).
        with_logprobs: Whether log-probs were asked for.
    """

    prefix: str
    whole_object: str
    chunk_object: str

    def __init__(self, request_id: str, model: str, front: dict[str, Any] | None, with_logprobs: bool) -> None:
        self._id, self._model, self._front = f"{self.prefix}-{request_id}", model, front
        self._created = int(time.time())
        self.with_logprobs = with_logprobs

    def whole(self, choices: Iterable[Choice], usage: Usage) -> dict[str, Any]:
        """A reply that is not streamed."""
        return self._frame(self.whole_object) | {
            "choices": [self._choice(index, choice) for index, choice in enumerate(choices)],
            "usage": usage.as_json(),
        }

    def chunk(self, choices: list[dict[str, Any]], usage: dict[str, int] | None = None) -> dict[str, Any]:
        """One event of a stream."""
        frame = self._frame(self.chunk_object) | {"choices": choices}
        return frame if usage is None else frame | {"usage": usage}

    def opening(self, count: int) -> list[dict[str, Any]]:
        """What comes before the first text of each answer."""
        return []

    @abstractmethod
    def delta(self, piece: Piece, offset: int) -> dict[str, Any]:
        """A piece as an entry of `choices`."""

    @abstractmethod
    def _choice(self, index: int, choice: Choice) -> dict[str, Any]: ...

    def _frame(self, kind: str) -> dict[str, Any]:
        frame = {"id": self._id, "object": kind, "created": self._created, "model": self._model}
        return frame if self._front is None else frame | {"cartridge": self._front}


class ChatReply(Reply):
    """Of /v1/chat/completions."""

    prefix, whole_object, chunk_object = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def opening(self, count: int) -> list[dict[str, Any]]:
        """The role, once for each answer."""
        delta = {"role": "assistant", "content": ""}
        return [
            self.chunk([{"index": index, "delta": delta, "logprobs": None, "finish_reason": None}])
            for index in range(count)
        ]

    def delta(self, piece: Piece, offset: int) -> dict[str, Any]:
        """A piece as a delta."""
        said: dict[str, Any] = {"content": piece.text} if piece.text or piece.logprobs else {}
        if piece.tool_call is not None:
            said = {"tool_calls": [{"index": 0} | _call(piece.tool_call)]}
        return {
            "index": piece.index,
            "delta": said,
            "logprobs": self._logprobs(piece.logprobs) if self.with_logprobs else None,
            "finish_reason": piece.finish_reason,
        }

    def _choice(self, index: int, choice: Choice) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": choice.text, "refusal": None}
        if choice.tool_call is not None:
            message |= {"content": None, "tool_calls": [_call(choice.tool_call)]}
        return {
            "index": index,
            "message": message,
            "logprobs": self._logprobs(choice.logprobs) if self.with_logprobs else None,
            "finish_reason": choice.finish_reason,
        }

    def _logprobs(self, logprobs: Iterable[TokenLogprob]) -> dict[str, Any]:
        def entry(token: str, logprob: float) -> dict[str, Any]:
            # Part of a character has bytes that its text does not show.
            known = None if "\ufffd" in token else list(token.encode())
            return {"token": token, "logprob": max(logprob, _LOWEST), "bytes": known}

        return {
            "content": [
                entry(one.token, one.logprob) | {"top_logprobs": [entry(*pair) for pair in one.top]} for one in logprobs
            ],
            "refusal": None,
        }


def _call(call: ToolCall) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


class TextReply(Reply):
    """Of /v1/completions."""

    prefix, whole_object, chunk_object = "cmpl", "text_completion", "text_completion"

    def delta(self, piece: Piece, offset: int) -> dict[str, Any]:
        """A piece; `offset` is the length of the answer's text before it."""
        return {
            "index": piece.index,
            "text": piece.text,
            "logprobs": self._logprobs(piece.logprobs, offset) if self.with_logprobs else None,
            "finish_reason": piece.finish_reason,
        }

    def _choice(self, index: int, choice: Choice) -> dict[str, Any]:
        return {
            "index": index,
            "text": choice.text,
            "logprobs": self._logprobs(choice.logprobs, 0) if self.with_logprobs else None,
            "finish_reason": choice.finish_reason,
        }

    def _logprobs(self, logprobs: Iterable[TokenLogprob], offset: int) -> dict[str, Any]:
        offsets = []
        for one in logprobs:
            offsets.append(offset)
            offset += len(one.token)
        return {
            "tokens": [one.token for one in logprobs],
            "token_logprobs": [max(one.logprob, _LOWEST) for one in logprobs],
            "top_logprobs": [{text: max(value, _LOWEST) for text, value in one.top} or None for one in logprobs],
            "text_offset": offsets,
        }
