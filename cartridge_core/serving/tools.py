"""Functions that a model may call: how they stand in the prompt, what holds an answer to them, and how a call is read.

A template's own place for functions is the system message, which is the Cartridge's place here. So they are joined to
the first user turn, as a client's system text is. The engine holds a forced call to its schema (`response_format`);
where the model may choose, an answer that is a call from its first to its last character is one, any other is text.
"""

import json
import secrets
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

from cartridge_core.chat_format import JOIN
from cartridge_core.digest import canonical_json
from cartridge_core.serving.engine import FinishReason, Piece, TokenLogprob, ToolCall
from cartridge_core.serving.errors import BadRequestError
from cartridge_core.serving.openai_messages import FunctionTool, Message
from cartridge_core.serving.openai_types import ChatRequest

_NOTHING: dict[str, Any] = {"type": "object", "properties": {}}


@dataclass(frozen=True)
class Calling:
    """The functions of one request."""

    tools: tuple[FunctionTool, ...]
    forced: bool = False
    """Whether the answer has to be a call."""
    named: bool = False
    """Whether the caller said of which function."""

    @classmethod
    def of(cls, body: ChatRequest) -> "Calling | None":
        """The functions that a request brings; None where none may be called.

        Raises:
            BadRequestError: It chooses one that it does not bring.
        """
        tools, choice = tuple(body.tools or ()), body.tool_choice or "auto"
        if isinstance(choice, str):
            if choice in ("auto", "none") and (not tools or choice == "none"):
                return None
            if not tools:
                raise BadRequestError("tool_choice asks for a call and there are no tools.", param="tool_choice")
            return cls(tools, forced=choice == "required")
        chosen = tuple(tool for tool in tools if tool.function.name == choice.function.name)
        if not chosen:
            raise BadRequestError(
                f"tool_choice names {choice.function.name!r}, which is not among the tools.", param="tool_choice"
            )
        return cls(chosen, forced=True, named=True)

    def instructions(self) -> str:
        """What the model is told about them."""
        listed = "\n".join(canonical_json(tool.function.model_dump(exclude_none=True)) for tool in self.tools)
        reply = 'Reply with nothing but {"name": the function, "arguments": {its arguments}}'
        return f"You can call these functions:\n{listed}\n{reply}{'.' if self.forced else ' to call one.'}"

    def response_format(self) -> dict[str, Any] | None:
        """What holds the answer to a call; None where it may be text."""
        if not self.forced:
            return None
        calls = [
            {
                "type": "object",
                "properties": {
                    "name": {"const": tool.function.name},
                    "arguments": tool.function.parameters or _NOTHING,
                },
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
            for tool in self.tools
        ]
        schema = calls[0] if len(calls) == 1 else {"anyOf": calls}
        return {"type": "json_schema", "json_schema": {"name": "call", "schema": schema, "strict": True}}

    async def read(self, pieces: AsyncGenerator[Piece, None]) -> AsyncGenerator[Piece, None]:
        """Pieces with calls where answers are calls; text goes on as it comes, once it cannot be a call any more."""
        answers: dict[int, _Held] = {}
        async with aclosing(pieces):
            async for piece in pieces:
                held = answers.setdefault(piece.index, _Held())
                if held.is_text:
                    yield piece
                    continue
                held.add(piece)
                if piece.finish_reason is not None:
                    call = self._call(held.text)
                    yield held.piece(piece.index, piece.finish_reason, call, "stop" if self.named else "tool_calls")
                elif held.text.lstrip()[:1] not in ("", "{"):
                    held.is_text = True
                    yield held.piece(piece.index, None)

    def _call(self, text: str) -> ToolCall | None:
        try:
            found = json.loads(text)
        except ValueError:
            return None
        if not isinstance(found, dict) or found.get("name") not in {tool.function.name for tool in self.tools}:
            return None
        arguments = found.get("arguments", found.get("parameters"))
        if not isinstance(arguments, dict):
            return None
        return ToolCall(f"call_{secrets.token_hex(12)}", found["name"], json.dumps(arguments, ensure_ascii=False))


@dataclass
class _Held:
    """The beginning of an answer that may be a call."""

    text: str = ""
    num_tokens: int = 0
    logprobs: list[TokenLogprob] = field(default_factory=list)
    is_text: bool = False

    def add(self, piece: Piece) -> None:
        self.text += piece.text
        self.num_tokens += piece.num_tokens
        self.logprobs += piece.logprobs

    def piece(
        self,
        index: int,
        reason: FinishReason | None,
        call: ToolCall | None = None,
        called: FinishReason = "tool_calls",
    ) -> Piece:
        whole = Piece(self.text, index, self.num_tokens, tuple(self.logprobs), reason)
        return whole if call is None else replace(whole, text="", tool_call=call, finish_reason=called)


def turns(messages: Sequence[Message], calling: Calling | None = None) -> list[dict[str, str]]:
    """A conversation as the renderer takes it: functions in front of the first user turn, their results as a user's.

    Args:
        messages: As they were sent.
        calling: The functions that may be called.

    Raises:
        BadRequestError: A result comes without a call before it.
    """
    said: list[dict[str, str]] = []
    before: Message | None = None
    for message in messages:
        role, content = message.rendered()
        if role == "tool":
            if before is None or not (before.role == "tool" or before.tool_calls):
                raise BadRequestError(
                    "A message of role 'tool' has to follow a message with 'tool_calls'.", param="messages"
                )
            content = f"Result of the function: {content}"
            if before.role == "tool":
                said[-1]["content"] += JOIN + content
            else:
                said.append({"role": "user", "content": content})
        else:
            said.append({"role": role, "content": content})
        before = message
    if calling is not None:
        first = next((turn for turn in said if turn["role"] == "user"), None)
        if first is not None:
            first["content"] = calling.instructions() + JOIN + first["content"]
    return said
