"""Requests in OpenAI's format. What is not known is refused; what would reach into the engine is refused by name."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from cartridge_core.serving.config import Fallback
from cartridge_core.serving.openai_messages import FunctionTool, Message, NamedTool, Text

REFUSED = ("kv_transfer_params", "cache_salt", "prompt_logprobs", "echo")
"""Fields of engines that no client may set: they select or reveal what stands in front of the prompt."""

ENGINE_FIELDS = (
    "functions",
    "function_call",
    "response_format",
    "frequency_penalty",
    "presence_penalty",
    "logit_bias",
)
"""Fields that change the answer and that only some engines understand."""

_MEANINGLESS: tuple[Any, ...] = (None, False, 0, [], {}, "none", "auto", {"type": "text"})
"""Values of engine fields that ask for nothing."""


class CartridgeChoice(BaseModel):
    """A Cartridge as the reference servers' requests name it."""

    model_config = ConfigDict(extra="forbid")

    id: Annotated[str, Field(min_length=1, max_length=512)]
    """`corpus`, `corpus@alias` or `corpus:version`, or several of these with a plus between them."""
    source: Literal["catalog"]
    """Cartridges come from the catalog and from nowhere else."""


class StreamOptions(BaseModel):
    """What a stream holds beside the answer."""

    model_config = ConfigDict(extra="forbid")

    include_usage: bool = False
    include_obfuscation: bool = False


class GenerationFields(BaseModel):
    """What both kinds of request have in common."""

    model_config = ConfigDict(extra="forbid")

    model: Annotated[str, Field(min_length=1, max_length=512)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1, le=16)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Text | Annotated[list[Annotated[Text, Field(min_length=1)]], Field(max_length=4)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: dict[str, float] | None = None
    # These change nothing in an answer.
    user: str | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    # Ours.
    cartridges: Annotated[list[CartridgeChoice], Field(min_length=1, max_length=8)] | None = None
    """The reference servers' way to name Cartridges, at least one; `model` is then the base model."""
    cartridge_fallback: Fallback | None = None
    """What to answer where the Cartridge cannot be served; the gateway's own setting where nobody says."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_by_name(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        for name in REFUSED:
            if values.get(name) not in (None, False):
                raise PydanticCustomError("refused_parameter", "{name}", {"name": name})
        return {name: value for name, value in values.items() if name not in REFUSED}

    def stops(self) -> tuple[str, ...]:
        """Texts that end the answer."""
        if self.stop is None or self.stop == "":
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    def engine_fields(self) -> dict[str, Any]:
        """What is asked of the engine beyond sampling."""
        values = {name: getattr(self, name, None) for name in ENGINE_FIELDS}
        return {name: value for name, value in values.items() if not any(value == nothing for nothing in _MEANINGLESS)}


class ChatRequest(GenerationFields):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: dict[str, Any] | None = None
    tools: Annotated[list[FunctionTool], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    functions: list[dict[str, Any]] | None = None
    function_call: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None

    def num_logprobs(self) -> int | None:
        """Likeliest tokens to report; None for no log-probs."""
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(GenerationFields):
    """POST /v1/completions."""

    prompt: (
        Text
        | Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
        | Annotated[list[Text], Field(min_length=1, max_length=64)]
        | Annotated[
            list[Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]], Field(min_length=1, max_length=64)
        ]
    )
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    best_of: Literal[1] | None = None
    suffix: Literal[""] | None = None

    def prompts(self) -> list[str | list[int]]:
        """Each prompt, as text or tokens."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        texts = [part for part in self.prompt if not isinstance(part, int)]
        tokens = [part for part in self.prompt if isinstance(part, int)]
        return [tokens] if tokens else list(texts)
