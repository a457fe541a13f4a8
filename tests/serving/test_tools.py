"""Functions in a request, in a prompt and in an answer."""

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import pytest

from cartridge_core.serving.engine import FinishReason, Piece
from cartridge_core.serving.errors import BadRequestError
from cartridge_core.serving.openai_types import ChatRequest
from cartridge_core.serving.tools import Calling, turns

LOOK: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Finds a ward.",
        "parameters": {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]},
    },
}
TELL: dict[str, Any] = {"type": "function", "function": {"name": "tell"}}
CALL = '{"name": "look_up", "arguments": {"name": "Ada Lind"}}'


def request(**fields: Any) -> ChatRequest:
    messages = [{"role": "user", "content": "Which ward?"}]
    return ChatRequest(**({"model": "clinic", "messages": messages, "tools": [LOOK, TELL]} | fields))


def calling(**fields: Any) -> Calling:
    found = Calling.of(request(**fields))
    assert found is not None
    return found


@pytest.mark.parametrize("fields", [{"tools": None}, {"tools": []}, {"tool_choice": "none"}])
def test_none_may_be_called(fields: dict[str, Any]) -> None:
    assert Calling.of(request(**fields)) is None


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [], "tool_choice": "required"},
        {"tool_choice": {"type": "function", "function": {"name": "other"}}},
    ],
)
def test_a_choice_of_what_is_not_there(fields: dict[str, Any]) -> None:
    with pytest.raises(BadRequestError) as refused:
        Calling.of(request(**fields))
    assert refused.value.param == "tool_choice"


def test_a_forced_call_has_a_schema() -> None:
    assert calling().response_format() is None
    named = calling(tool_choice={"type": "function", "function": {"name": "look_up"}})
    format_ = named.response_format()
    assert format_ is not None
    schema = format_["json_schema"]["schema"]
    assert schema["properties"] == {"name": {"const": "look_up"}, "arguments": LOOK["function"]["parameters"]}
    any_ = calling(tool_choice="required").response_format()
    assert any_ is not None
    names = [one["properties"]["name"]["const"] for one in any_["json_schema"]["schema"]["anyOf"]]
    assert names == ["look_up", "tell"]


def test_functions_stand_in_the_first_user_turn() -> None:
    body = request(messages=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Which ward?"}])
    system, user = turns(body.messages, calling())
    assert system == {"role": "system", "content": "Be brief."}
    assert user["content"].startswith("You can call these functions:\n{")
    assert '"name":"look_up"' in user["content"] and user["content"].endswith("\n\nWhich ward?")
    assert turns(body.messages)[1]["content"] == "Which ward?"


def test_a_conversation_with_calls_and_results() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "look_up", "arguments": '{"name": "Ada Lind"}'}}
    body = request(
        messages=[
            {"role": "user", "content": "Which ward?"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "1", "content": "green"},
            {"role": "tool", "tool_call_id": "2", "content": "red"},
        ]
    )
    said = turns(body.messages)
    assert [turn["role"] for turn in said] == ["user", "assistant", "user"]
    assert said[1]["content"] == CALL
    assert said[2]["content"] == "Result of the function: green\n\nResult of the function: red"
    for lonely in ([body.messages[2]], [body.messages[0], body.messages[2]]):
        with pytest.raises(BadRequestError, match="has to follow"):
            turns(lonely)
    with pytest.raises(ValueError, match="needs content"):
        request(messages=[{"role": "user", "content": None}])


def read(texts: Sequence[str], made: Calling, reason: FinishReason = "stop") -> list[Piece]:
    async def pieces() -> AsyncGenerator[Piece, None]:
        for place, text in enumerate(texts):
            yield Piece(text, finish_reason=reason if place == len(texts) - 1 else None)

    async def gathered() -> list[Piece]:
        return [piece async for piece in made.read(pieces())]

    return asyncio.run(gathered())


def test_an_answer_that_is_a_call() -> None:
    for text in (CALL, CALL.replace("arguments", "parameters"), f" {CALL}\n"):
        (piece,) = read([text[:5], text[5:20], text[20:]], calling())
        assert piece.tool_call is not None and piece.text == ""
        assert (piece.tool_call.name, json.loads(piece.tool_call.arguments)) == ("look_up", {"name": "Ada Lind"})
        assert (piece.finish_reason, piece.num_tokens) == ("tool_calls", 3)
    named = calling(tool_choice={"type": "function", "function": {"name": "look_up"}})
    assert read([CALL], named)[0].finish_reason == "stop"


def test_text_goes_on_as_it_comes() -> None:
    assert [piece.text for piece in read([" ", "The", " ward", "."], calling())] == [" The", " ward", "."]


@pytest.mark.parametrize(
    "text",
    ['{"name": "other", "arguments": {}}', '{"name": "tell"}', '{"name": "tell", "arguments": 3}', CALL[:-1], "{}"],
)
def test_what_only_looks_like_a_call_is_text(text: str) -> None:
    (piece,) = read([text], calling(), "length")
    assert (piece.text, piece.tool_call, piece.finish_reason) == (text, None, "length")
