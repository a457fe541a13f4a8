"""What a teacher is asked: the conversations' turns as token ids."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cartridge_core.rendering import render_turns
from cartridge_core.teacher.protocol import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def turn_token_ids(
    tokenizer: "PreTrainedTokenizerBase", conversations: Sequence[Sequence[Message]]
) -> list[Sequence[int]]:
    """Tokens of each conversation as they follow the system message, the assistant's turn opened.

    Raises:
        RenderingError: A conversation cannot be written in the model's chat format.
    """
    # Askers share a few seed prompts, and a template is slow beside a small model.
    rendered: dict[tuple[tuple[str, str], ...], Sequence[int]] = {}
    prompts = []
    for messages in conversations:
        key = tuple((message["role"], message["content"]) for message in messages)
        if key not in rendered:
            rendered[key] = render_turns(tokenizer, list(messages), add_generation_prompt=True).token_ids
        prompts.append(rendered[key])
    return prompts
