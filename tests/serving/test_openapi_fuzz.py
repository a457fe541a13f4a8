"""The gateway's own OpenAPI document, fuzzed: every reply is one that the document declares, in the form it has.

`make fuzz` sends far more (FUZZ_EXAMPLES requests for each operation, drawn anew each time).
"""

import json
import os
from collections.abc import Iterator
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.errors import FlakyStrategyDefinition
from schemathesis import APIOperation, Case, GenerationMode

from cartridge_core.catalog import catalog_session
from cartridge_core.catalog.api_keys import create_api_key
from tests.conftest import build_tiny_base
from tests.serving.shop import QUESTION, Running, Shop, serving, text_of

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "25"))
OPERATIONS = (
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/{name}"),
    ("GET", "/healthz"),
    ("GET", "/readyz"),
    ("GET", "/metrics"),
    ("GET", "/admin/cartridges"),
    ("POST", "/admin/cartridges/load"),
    ("POST", "/admin/cartridges/pin"),
    ("POST", "/admin/cartridges/unload"),
    ("POST", "/admin/promote"),
    ("POST", "/admin/rollback"),
)
# Only a body or a page can be wrong: any text is a name, and the other operations take nothing.
CASES = [(*one, GenerationMode.POSITIVE) for one in OPERATIONS] + [
    (*one, GenerationMode.NEGATIVE) for one in OPERATIONS if one[0] == "POST" or one[1] == "/admin/cartridges"
]
NAMES = st.sampled_from(
    ["clinic", "clinic@champion", "clinic:1", "clinic:2", "law", "tiny-qwen2", "law+clinic", "clinic@", "law:0", "+"]
)


class Fuzzed(Running):
    """A gateway under fire, with an operator's key."""

    key: str
    right: str


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fuzzed]:
    shop = Shop(build_tiny_base("qwen2"), tmp_path_factory.mktemp("shop"))
    shop.add("clinic", 1, "champion")
    shop.add("clinic", 2, "canary")
    shop.add("law", 1, "champion")
    with catalog_session(shop.settings) as session:
        key = create_api_key(session, "default", "fuzz", operator=True)[1]
    with serving(shop) as running:
        fuzzed = Fuzzed(running.gateway, running.server, running.thread)
        fuzzed.key, fuzzed.right = key, shop.expected("clinic").text
        yield fuzzed
        # After all of it the gateway answers as before.
        assert text_of(fuzzed.answer(key=key, model="clinic:1")) == fuzzed.right


@pytest.fixture(scope="module")
def document(server: Fuzzed) -> Any:
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json")


def check(reply: Any, declared: set[str], path: str, sent: Any) -> None:
    about = (reply.status_code, reply.text[:500], sent)
    assert str(reply.status_code) in declared, about
    if reply.status_code >= 400 and path != "/readyz":
        assert set(reply.json()) == {"error"}, about
        error = reply.json()["error"]
        assert set(error) == {"message", "type", "param", "code"} and error["code"], about
        # Nothing was damaged, so nothing may be said to be; and nothing here is a surprise.
        assert reply.status_code != 500, about
        assert "Traceback" not in reply.text and "/tmp/" not in reply.text, about
    elif "text/event-stream" in str(reply.headers.get("content-type")):
        assert reply.text.endswith("data: [DONE]\n\n") != ('data: {"error":' in reply.text), about
    assert reply.headers["x-request-id"], about


def aim(case: Case, data: st.DataObject) -> None:
    """Let half of the requests name something that is there, and answer shortly: a name drawn at random never does."""
    if not data.draw(st.booleans()):
        return
    if "name" in (case.path_parameters or {}):
        case.path_parameters["name"] = data.draw(NAMES)
    if not isinstance(case.body, dict):
        return
    if "/v1" in case.operation.path or "/cartridges" in case.operation.path:
        case.body["model"] = data.draw(NAMES)
    if "/v1" in case.operation.path:
        case.body["max_tokens"] = data.draw(st.integers(1, 4))
        for field in ("cartridges", "max_completion_tokens", "tools", "functions", "response_format"):
            if data.draw(st.booleans()):
                case.body.pop(field, None)
        if "messages" in case.body and data.draw(st.booleans()):
            case.body["messages"] = QUESTION
    elif "corpus" in case.body:
        case.body["corpus"] = data.draw(st.sampled_from(["clinic", "law", "none"]))
        if "reference" in case.body and data.draw(st.booleans()):
            # Digits of other scripts were once taken for a version.
            case.body["reference"] = data.draw(st.text("0123456789²①१abcdef%_", min_size=1, max_size=8))


def test_every_operation_is_here(document: Any) -> None:
    found = {(found.ok().method.upper(), found.ok().path) for found in document.get_all_operations()}
    assert found == set(OPERATIONS)


@pytest.mark.parametrize(("method", "path", "mode"), CASES)
def test_replies_are_declared(server: Fuzzed, document: Any, method: str, path: str, mode: GenerationMode) -> None:
    operation: APIOperation = document[path][method]
    declared = set(operation.definition.raw["responses"])
    headers = {"authorization": f"Bearer {server.key}"}
    # Made once: a strategy that is made at every draw may differ from the last one, and what is drawn must not.
    cases = operation.as_strategy(generation_mode=mode)

    with requests.Session() as session:

        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            database=None,
            derandomize="FUZZ_EXAMPLES" not in os.environ,
            suppress_health_check=list(HealthCheck),
        )
        @given(data=st.data())
        def send(data: st.DataObject) -> None:
            case = data.draw(cases)
            aim(case, data)
            reply = case.call(base_url=server.url, headers=headers, session=session, timeout=60)
            check(reply, declared, path, case.body)

        try:
            send()
        except FlakyStrategyDefinition:
            # Drawing was inconsistent, which says nothing of the gateway (seen in one run of many): once more.
            send()


NASTY: dict[str, bytes] = {
    "no JSON": b"{",
    "nothing": b"",
    "not UTF-8": b'{"model": "\xff"}',
    "half a character": b'{"model": "clinic\\ud800", "messages": [{"role": "user", "content": "x"}]}',
    "half a character in a message": b'{"model": "clinic", "messages": [{"role": "user", "content": "\\udfff"}]}',
    "half a character in a prompt": b'{"model": "clinic", "prompt": "\\udfff"}',
    "half a character in prompts": b'{"model": "clinic", "prompt": ["x", "\\udfff"]}',
    "half a character in stop": b'{"model": "clinic", "prompt": "x", "stop": "\\udfff"}',
    "half a character as a field": b'{"model": "clinic", "\\ud800": 1}',
    "half a character in tools": b'{"model": "clinic", "messages": [{"role": "user", "content": "x"}], '
    b'"tools": [{"\\ud800": "\\ud800"}]}',
    "deep": b"[" * 100_000,
    "deep and whole": b'{"model": ' + b"[" * 5000 + b"]" * 5000 + b"}",
    "deep tools": b'{"model": "clinic", "messages": [{"role": "user", "content": "x"}], "tools": '
    + b"[" * 900
    + b"]" * 900
    + b"}",
    "a long number": b'{"model": "clinic", "max_tokens": ' + b"9" * 10_000 + b"}",
    "the same field twice": b'{"model": "clinic", "model": 1}',
    "a null character": b'{"model": "clinic\\u0000", "messages": [{"role": "user", "content": "\\u0000"}]}',
}
NUMBERS = ("temperature", "top_p", "frequency_penalty", "presence_penalty", "seed", "n", "max_tokens", "top_logprobs")


@pytest.mark.parametrize("body", NASTY.values(), ids=NASTY)
def test_bodies_that_no_document_describes(server: Fuzzed, body: bytes) -> None:
    headers = {"authorization": f"Bearer {server.key}", "content-type": "application/json"}
    for path in ("/v1/chat/completions", "/v1/completions", "/admin/cartridges/load", "/admin/promote"):
        reply = server.client.post(path, content=body, headers=headers)
        check(reply, {"400", "404", "422"}, path, body[:100])


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999", "1e-999", "-0.0"])
def test_numbers_that_are_none(server: Fuzzed, value: str) -> None:
    headers = {"authorization": f"Bearer {server.key}", "content-type": "application/json"}
    wanted = json.dumps({"model": "clinic", "messages": QUESTION, "max_tokens": 2})
    for name in NUMBERS:
        body = f'{wanted[:-1]}, "{name}": {value}}}'
        reply = server.client.post("/v1/chat/completions", content=body, headers=headers)
        check(reply, {"200", "400"}, "/v1/chat/completions", body)
        if value in ("NaN", "Infinity", "-Infinity"):
            assert reply.status_code == 400, (name, reply.text)


def test_paths_that_no_document_describes(server: Fuzzed) -> None:
    headers = {"authorization": f"Bearer {server.key}"}
    for path in ("/v1/models/%ed%a0%80", "/v1/models/%00", "/v1/models/%ff", "/v1/models/..%2f..%2fetc", "/%ff"):
        reply = server.client.get(path, headers=headers)
        check(reply, {"404", "422"}, path, path)
