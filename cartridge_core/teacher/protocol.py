"""What self-study asks of a teacher."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Protocol

from cartridge_core.manifest import BaseModelIdentity

if TYPE_CHECKING:  # the protocol is named in light code; generation loads torch
    from cartridge_core.inference.generate import Generation, GenerationConfig

Message = dict[str, str]
"""A chat message: `role` and `content`."""

TeacherKind = Literal["local", "openai"]
"""Where the model runs: in this process, or behind vLLM's OpenAI API. Engines differ in the last digits, so that a
dataset says which of them made it."""


class Teacher(Protocol):
    """A model that reads a text once and then answers many conversations about it."""

    @property
    def kind(self) -> TeacherKind:
        """What runs the model."""
        ...

    @property
    def identity(self) -> BaseModelIdentity:
        """The model behind it: its tokens and probabilities are what a Cartridge is trained on."""
        ...

    def ask(
        self,
        context_text: str,
        conversations: Sequence[Sequence[Message]],
        config: "GenerationConfig",
        seeds: Sequence[int],
    ) -> "list[Generation]":
        """The next assistant turn of each conversation, with the text in the system message.

        Args:
            context_text: What the model knows; wrapped into the system message. Asking again about the same text costs
                no second reading.
            conversations: Messages that end with a user turn.
            config: How to generate; `top_k_logprobs` asks for the distribution of every generated token.
            seeds: One for each conversation. An answer depends on its own conversation and seed alone.

        Raises:
            TeacherError: The text and a conversation do not fit into the model, or it cannot be reached.
        """
        ...
