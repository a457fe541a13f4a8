"""Chat rendering: the message that a Cartridge replaces, and the turns that follow it.

A conversation in a model's own chat format is cut in two. The head is the BOS-led system message that wraps a text; a
Cartridge stands in for it. The rest, the turns, is what study, training, evaluation and the gateway put behind it. Head
and turns together are the tokens of the whole conversation, so a model cannot tell the difference.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cartridge_core.chat_format import (
    FIXED_VARIABLES,
    JOIN,
    chat_format,
    encode,
    frame,
    leading_special,
    plain,
    template_text,
)
from cartridge_core.digest import digest_of
from cartridge_core.errors import RenderingError
from cartridge_core.prompts import SYSTEM_TEMPLATE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_VERSION = 1
"""Raised when the same messages would be rendered differently."""


@dataclass(frozen=True)
class RenderedTurns:
    """What follows a Cartridge.

    Attributes:
        token_ids: Tokens, without BOS.
        assistant_mask: True at the tokens of assistant content and at the token that ends it.
        text: The same as text.
    """

    token_ids: list[int]
    assistant_mask: list[bool]
    text: str


def system_text(text: str) -> str:
    """The system message that asks the model to know `text`."""
    return SYSTEM_TEMPLATE.replace("{text}", text.strip())


def prefix_token_ids(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    """Tokens of the BOS-led system message that wraps `text`: what a Cartridge replaces.

    Args:
        tokenizer: Has a chat template.
        text: A corpus or a chunk of one.

    Raises:
        RenderingError: The tokenizer has no usable chat template.
    """
    form = chat_format(tokenizer)
    return encode(tokenizer, form.before + plain(tokenizer, system_text(text)) + form.after)[0]


def bare_prefix_token_ids(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Tokens in front of the turns when there is no text: BOS, or nothing.

    A template that writes the system text into the user's turn needs that turn's opening too.
    """
    return encode(tokenizer, chat_format(tokenizer).bare)[0]


def render_turns(
    tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Mapping[str, str]], add_generation_prompt: bool
) -> RenderedTurns:
    """A conversation as it follows a Cartridge: no second BOS, no default system text.

    A system message of the client is joined to the first user turn, because the head's place is taken. Contents lose
    outer white space, and special tokens inside them are broken up so that no user can forge a turn.

    Args:
        tokenizer: Has a chat template.
        messages: `{"role": ..., "content": ...}`: at most one system message first, then user and assistant in turn.
        add_generation_prompt: Whether to open the assistant's turn at the end.

    Raises:
        RenderingError: Roles or contents are not as above, or the tokenizer has no usable chat template.
    """
    form = chat_format(tokenizer)
    turns = _turns(messages, add_generation_prompt)
    roles = tuple(role for role, _ in turns)
    around = frame(tokenizer, roles, add_generation_prompt)
    head = form.before + "x" + form.after
    pieces = [around[0]]
    spans: list[tuple[int, int]] = []
    length = len(head) + len(around[0])
    for place, ((role, content), following) in enumerate(zip(turns, around[1:], strict=True)):
        content = plain(tokenizer, content)
        if role == "assistant":
            # Mistral's answers start with a space that its generation prompt lacks: the model has to write it.
            opening = frame(tokenizer, roles[:place], True)[-1]
            space = around[place].removeprefix(opening)
            start = length - (len(space) if space.isspace() else 0)
            spans.append((start, length + len(content) + len(leading_special(tokenizer, following))))
        pieces += [content, following]
        length += len(content) + len(following)
    text = "".join(pieces)
    # Encoded behind a head, then cut: alone, the first word would get the dummy space of a text's beginning.
    ids, offsets = encode(tokenizer, head + text)
    first = next((i for i, (start, end) in enumerate(offsets) if start >= len(head) or end > len(head)), len(offsets))
    mask = [any(start < stop and end > begin for begin, stop in spans) for start, end in offsets]
    return RenderedTurns(ids[first:], mask[first:], text)


def turn_end_ids(tokenizer: "PreTrainedTokenizerBase") -> frozenset[int]:
    """The special token that ends an assistant turn in the chat template; empty without a template or such a token."""
    if not tokenizer.chat_template:
        return frozenset()
    end = leading_special(tokenizer, frame(tokenizer, ("user", "assistant"), False)[-1])
    return frozenset(encode(tokenizer, end)[0]) if end else frozenset()


def template_digest(tokenizer: "PreTrainedTokenizerBase") -> str:
    """sha256 of everything that decides how messages become text: template, system wording, this code's version.

    Raises:
        RenderingError: The tokenizer has no chat template.
    """
    return digest_of(
        {
            "version": _VERSION,
            "template": template_text(tokenizer),
            "system": SYSTEM_TEMPLATE,
            "bos": tokenizer.bos_token,
            "eos": tokenizer.eos_token,
            "variables": FIXED_VARIABLES,
        }
    )


def _turns(messages: Sequence[Mapping[str, str]], add_generation_prompt: bool) -> list[tuple[str, str]]:
    turns: list[tuple[str, str]] = []
    for place, message in enumerate(messages):
        role, content = message.get("role"), message.get("content")
        if role not in ("system", "user", "assistant"):
            raise RenderingError(f"Message {place} has role {role!r}.", "Use system, user or assistant.")
        if not isinstance(content, str):
            raise RenderingError(f"The content of message {place} is not text.", "Send text only.")
        turns.append((role, content.strip()))
    system = turns.pop(0)[1] if turns and turns[0][0] == "system" else ""
    wanted = itertools.cycle(("user", "assistant"))
    if not turns or any(role != next(wanted) for role, _ in turns):
        raise RenderingError(
            f"Roles are {[m.get('role') for m in messages]}.",
            "Start with a user message (after at most one system message) and let user and assistant take turns.",
        )
    if add_generation_prompt and turns[-1][0] != "user":
        raise RenderingError("The last message is the assistant's: there is nothing to reply to.", "End with a user's.")
    if system:
        turns[0] = ("user", f"{system}{JOIN}{turns[0][1]}".strip())
    return turns
