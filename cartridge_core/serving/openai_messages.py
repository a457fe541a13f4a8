"""Messages and the functions they may call, in OpenAI's format."""

import json
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError


def _whole(text: str) -> str:
    """A text that is one: JSON can write half of a character (a surrogate), which has no bytes and no tokens."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise PydanticCustomError("string_unicode", "It holds half of a character, which is no text.") from None
    return text


Text = Annotated[str, AfterValidator(_whole)]
"""Text that can be turned into tokens."""


class TextPart(BaseModel):
    """A piece of a message's content."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["text"]
    text: Text


class Function(BaseModel):
    """A function that the model may call."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    description: Text | None = None
    parameters: dict[str, Any] | None = None
    """JSON schema of its arguments."""
    strict: bool | None = None


class FunctionTool(BaseModel):
    """A tool; functions are the only kind."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["function"]
    function: Function


class FunctionName(BaseModel):
    """Which function."""

    model_config = ConfigDict(extra="forbid")

    name: Text


class NamedTool(BaseModel):
    """The tool that has to be called."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["function"]
    function: FunctionName


class CalledFunction(BaseModel):
    """A function as an assistant called it."""

    model_config = ConfigDict(extra="ignore")

    name: Text
    arguments: Text
    """JSON."""


class MessageToolCall(BaseModel):
    """A call in an assistant's message that is sent back."""

    model_config = ConfigDict(extra="ignore")

    function: CalledFunction


class Message(BaseModel):
    """One message. An assistant's reply may be sent back as it came."""

    model_config = ConfigDict(extra="ignore")

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | list[TextPart] | None = None
    tool_calls: list[MessageToolCall] | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.content is None and not (self.role == "assistant" and self.tool_calls):
            raise PydanticCustomError("missing_content", "A message needs content, or an assistant's tool calls.")
        return self

    def rendered(self) -> tuple[str, str]:
        """Role and text; a call as the model writes it."""
        content = self.content or ""
        text = content if isinstance(content, str) else "".join(part.text for part in content)
        calls = [
            f'{{"name": {json.dumps(call.function.name)}, "arguments": {call.function.arguments}}}'
            for call in self.tool_calls or ()
        ]
        return "system" if self.role == "developer" else self.role, "\n".join([*([text] if text else []), *calls])
