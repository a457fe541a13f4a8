"""What a tokenizer's chat template writes around the contents of a conversation.

Templates are programs; they are asked, not read. Rendering marks in place of contents shows the text between contents
for any sequence of roles.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from cartridge_core.errors import RenderingError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FIXED_VARIABLES: dict[str, Any] = {"enable_thinking": False, "date_string": "26 Jul 2024"}
"""Template variables held still: a date in a prefix would make yesterday's Cartridge wrong today."""

JOIN = "\n\n"
"""Between a system text and the user's content where the template has no place for the former."""

_SENTINEL = "zq{}sentinelqz"
_formats: "WeakKeyDictionary[PreTrainedTokenizerBase, dict[Any, Any]]" = WeakKeyDictionary()


@dataclass(frozen=True)
class ChatFormat:
    """How a chat template puts a system text in front of the first user turn.

    Attributes:
        before: What precedes the system text, BOS included.
        after: What follows it and still belongs to the head.
        bare: The head when there is no text.
        native: Whether the template has a place of its own for the system text; else it is joined to the user's.
    """

    before: str
    after: str
    bare: str
    native: bool


def template_text(tokenizer: "PreTrainedTokenizerBase") -> str:
    """The tokenizer's chat template.

    Raises:
        RenderingError: It has none.
    """
    if not tokenizer.chat_template:
        raise RenderingError(
            f"The tokenizer of {tokenizer.name_or_path or 'this model'} has no chat template.",
            "Use the instruction-tuned model of the family.",
        )
    return str(tokenizer.get_chat_template())


def _known(tokenizer: "PreTrainedTokenizerBase") -> dict[Any, Any]:
    """What was found out about this tokenizer with its present template."""
    known = _formats.setdefault(tokenizer, {})
    if known.get("template") != tokenizer.chat_template:
        known.clear()
        known["template"] = tokenizer.chat_template
    return known


def _pieces(
    tokenizer: "PreTrainedTokenizerBase", roles: Sequence[str], add_generation_prompt: bool = False
) -> list[str] | None:
    """What the template writes around the contents of these roles; None if it refuses them or reorders contents."""
    from jinja2 import TemplateError

    marks = [_SENTINEL.format(place) for place in range(len(roles))]
    messages = [{"role": role, "content": mark} for role, mark in zip(roles, marks, strict=True)]
    try:
        text = str(
            tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=add_generation_prompt, **FIXED_VARIABLES
            )
        )
    except TemplateError:
        # Templates refuse roles by raising.
        return None
    found = re.findall(_SENTINEL.format(r"\d+"), text)
    return re.split(_SENTINEL.format(r"\d+"), text) if found == marks else None


def chat_format(tokenizer: "PreTrainedTokenizerBase") -> ChatFormat:
    """How this tokenizer's template frames a system text.

    Raises:
        RenderingError: The tokenizer has no chat template, or one that cannot write a user message.
    """
    known = _known(tokenizer)
    if "format" not in known:
        template_text(tokenizer)
        known["format"] = _find_format(tokenizer)
    found: ChatFormat = known["format"]
    return found


def _find_format(tokenizer: "PreTrainedTokenizerBase") -> ChatFormat:
    alone = _pieces(tokenizer, ("user",))
    if alone is None:
        raise RenderingError("The chat template cannot write a single user message.", "Use another model.")
    before_user = alone[0]
    single = _pieces(tokenizer, ("system", "user"))
    several = _pieces(tokenizer, ("system", "user", "assistant", "user"))
    if single is None or several is None or single[:2] != several[:2]:
        # No system role, or one that wanders to the last user message: the text joins the first user message.
        return ChatFormat(before_user, JOIN, before_user, native=False)
    before, between, after = single
    if after and between.startswith(after):
        # The system message is a turn of its own and ends as a user's does: the cut is behind its end.
        bos = tokenizer.bos_token or ""
        return ChatFormat(before, after, bos if bos and before.startswith(bos) else "", native=True)
    return ChatFormat(before, between, before_user, native=True)


def frame(tokenizer: "PreTrainedTokenizerBase", roles: tuple[str, ...], add_generation_prompt: bool) -> list[str]:
    """What the template writes around the contents of these turns, the head left out.

    Args:
        tokenizer: Has a chat template.
        roles: Of user and assistant turns.
        add_generation_prompt: Whether to open the assistant's turn at the end.

    Returns:
        One piece more than there are turns: before, between and after their contents.

    Raises:
        RenderingError: The template cannot write such a conversation.
    """
    known, key = _known(tokenizer), (roles, add_generation_prompt)
    if key not in known:
        form = chat_format(tokenizer)
        pieces = _pieces(tokenizer, ("system", *roles) if form.native else roles, add_generation_prompt)
        if pieces is None:
            raise RenderingError(f"The chat template cannot write a conversation of {', '.join(roles)}.")
        known[key] = [pieces[1].removeprefix(form.after), *pieces[2:]] if form.native else ["", *pieces[1:]]
    found: list[str] = known[key]
    return found


def _special_tokens(tokenizer: "PreTrainedTokenizerBase") -> "re.Pattern[str]":
    known = _known(tokenizer)
    if "specials" not in known:
        tokens = {t.content for t in tokenizer.added_tokens_decoder.values() if t.special}
        tokens |= set(tokenizer.all_special_tokens)
        longest_first = sorted((re.escape(token) for token in tokens if token), key=len, reverse=True)
        known["specials"] = re.compile("|".join(longest_first) or r"(?!)")
    found: re.Pattern[str] = known["specials"]
    return found


def plain(tokenizer: "PreTrainedTokenizerBase", content: str) -> str:
    """Content whose special tokens are broken by a zero-width space, so that they are read as text."""
    return _special_tokens(tokenizer).sub(lambda match: f"{match[0][0]}\u200b{match[0][1:]}", content)


def leading_special(tokenizer: "PreTrainedTokenizerBase", text: str) -> str:
    """The special token that a text starts with, or nothing."""
    match = _special_tokens(tokenizer).match(text)
    return match[0] if match else ""


def encode(tokenizer: "PreTrainedTokenizerBase", text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Token ids of a text as it stands, and where in it each token begins and ends.

    Raises:
        RenderingError: The tokenizer keeps no such record.
    """
    if not tokenizer.is_fast:
        raise RenderingError(f"{type(tokenizer).__name__} gives no offsets.", "Use a fast tokenizer.")
    if not text:
        return [], []
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return list(encoded["input_ids"]), [tuple(span) for span in encoded["offset_mapping"]]
