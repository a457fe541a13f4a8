"""OpenAI's endpoints over HTTP: the right Cartridge answers, in the right format."""

import json
import re
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing

import pytest

from cartridge_core.serving.engine import GenerationRequest, Piece
from cartridge_core.serving.errors import NotLoadedError
from tests.conftest import build_tiny_base
from tests.serving.shop import ICL_TOKENS, QUESTION, Running, Shop, events, serving, text_of


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    shop = Shop(build_tiny_base("qwen2"), tmp_path_factory.mktemp("shop"))
    shop.add("clinic", 1, "champion")
    shop.add("clinic", 2, "canary")
    shop.add("law", 1, "champion")
    return shop


@pytest.fixture(scope="module")
def server(shop: Shop) -> Iterator[Running]:
    with serving(shop) as running:
        yield running


def test_the_named_cartridge_answers(shop: Shop, server: Running) -> None:
    seen = set()
    for model, corpus, version in [
        ("clinic", "clinic", 1),
        ("clinic@champion", "clinic", 1),
        ("clinic@canary", "clinic", 2),
        ("clinic:1", "clinic", 1),
        ("clinic:2", "clinic", 2),
        ("law", "law", 1),
    ]:
        reply = server.answer(model=model)
        assert text_of(reply) == shop.expected(corpus, version).text
        assert reply["model"] == model
        assert (reply["cartridge"]["corpus"], reply["cartridge"]["version"]) == (corpus, version)
        assert reply["cartridge"]["digest"] == shop.cartridges[corpus, version].digest
        assert reply["cartridge"]["served"] == "cartridge"
        seen.add(text_of(reply))
    assert len(seen) == 3


def test_the_shape_of_a_reply(shop: Shop, server: Running) -> None:
    response = server.ask()
    reply = response.json()
    expected = shop.expected("clinic")
    assert set(reply) == {"id", "object", "created", "model", "choices", "usage", "cartridge"}
    assert reply["id"].startswith("chatcmpl-") and reply["object"] == "chat.completion"
    assert reply["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": expected.text, "refusal": None},
            "logprobs": None,
            "finish_reason": "length",
        }
    ]
    prompt, written = len(shop.prompt()), len(expected.token_ids)
    assert reply["usage"] == {
        "prompt_tokens": prompt,
        "completion_tokens": written,
        "total_tokens": prompt + written,
        "cartridge_tokens": 9,
        "context_tokens": 0,
    }
    cartridge = reply["cartridge"]
    assert (cartridge["cartridge_tokens"], cartridge["saved_tokens"]) == (9, ICL_TOKENS - 9)
    assert cartridge["saved_bytes"] == shop.cartridges["clinic", 1].kv_bytes // 9 * (ICL_TOKENS - 9)
    assert cartridge["evaluation"]["icl_score"] == 1.0
    assert response.headers["x-cartridge-digest"] == cartridge["digest"]
    assert reply["id"] == f"chatcmpl-{response.headers['x-request-id']}"


def test_a_stream_says_the_same(shop: Shop, server: Running) -> None:
    response = server.ask(stream=True, stream_options={"include_usage": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    first, *deltas, last = events(response)
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert {event["object"] for event in (first, *deltas)} == {"chat.completion.chunk"}
    assert all(event["usage"] is None for event in (first, *deltas))
    said = "".join(event["choices"][0]["delta"].get("content", "") for event in deltas)
    whole = server.answer()
    assert said == text_of(whole)
    assert len(deltas) > 5
    assert [event["choices"][0]["finish_reason"] for event in deltas[:-1]] == [None] * (len(deltas) - 1)
    assert deltas[-1]["choices"][0]["finish_reason"] == "length"
    assert (last["choices"], last["usage"]) == ([], whole["usage"])
    assert first["cartridge"] == whole["cartridge"]
    assert "usage" not in events(server.ask(stream=True))[0]


def test_a_system_message_is_joined_as_in_training(shop: Shop, server: Running) -> None:
    system = {"role": "system", "content": "Answer in one word."}
    reply = server.answer(messages=[system, *QUESTION])
    joined = [{"role": "user", "content": f"Answer in one word.\n\n{QUESTION[0]['content']}"}]
    assert reply["usage"]["prompt_tokens"] == len(shop.prompt(joined))
    assert text_of(reply) == text_of(server.answer(messages=joined))
    parts = [
        {
            "role": "developer",
            "content": [{"type": "text", "text": "Answer in "}, {"type": "text", "text": "one word."}],
        }
    ]
    assert text_of(server.answer(messages=[*parts, *QUESTION])) == text_of(reply)


def test_several_answers_seeds_and_stops(server: Running) -> None:
    wanted = {"n": 3, "temperature": 1.0, "seed": 5, "max_tokens": 20}
    reply = server.answer(**wanted)
    assert [choice["index"] for choice in reply["choices"]] == [0, 1, 2]
    texts = [choice["message"]["content"] for choice in reply["choices"]]
    assert len(set(texts)) == 3
    assert [choice["message"]["content"] for choice in server.answer(**wanted)["choices"]] == texts
    streamed = ["", "", ""]
    for event in events(server.ask(stream=True, **wanted)):
        for choice in event["choices"]:
            streamed[choice["index"]] += choice["delta"].get("content", "")
    assert streamed == texts
    whole = text_of(server.answer())
    stopped = server.answer(stop=[whole[4:6], "never said"])
    assert text_of(stopped) == whole[: whole.index(whole[4:6])]
    assert stopped["choices"][0]["finish_reason"] == "stop"


def test_logprobs(server: Running) -> None:
    choice = server.answer(logprobs=True, top_logprobs=2)["choices"][0]
    content = choice["logprobs"]["content"]
    assert len(content) == 12
    for entry in content:
        assert entry["logprob"] <= 0 and len(entry["top_logprobs"]) == 2
        assert entry["top_logprobs"][0]["token"] == entry["token"]
        assert entry["bytes"] is None or bytes(entry["bytes"]).decode() == entry["token"]
    streamed = events(server.ask(stream=True, logprobs=True, top_logprobs=2))
    gathered = [e for event in streamed for e in (event["choices"][0]["logprobs"] or {"content": []})["content"]]
    assert [entry["token"] for entry in gathered] == [entry["token"] for entry in content]


def test_text_completions(shop: Shop, server: Running) -> None:
    path = "/v1/completions"
    ids = shop.base.tokenizer("The ward of", add_special_tokens=False)["input_ids"]
    by_text = server.answer(path=path, prompt="The ward of")
    assert by_text["object"] == "text_completion"
    assert by_text["choices"][0]["text"] == server.answer(path=path, prompt=ids)["choices"][0]["text"]
    assert by_text["usage"]["prompt_tokens"] == len(ids)
    assert by_text["cartridge"]["version"] == 1
    several = server.answer(path=path, prompt=["The ward of", "Her room"], n=2, logprobs=1)
    assert [choice["index"] for choice in several["choices"]] == [0, 1, 2, 3]
    assert [choice["text"] for choice in several["choices"]][:2] == [by_text["choices"][0]["text"]] * 2
    alone = server.answer(path=path, prompt="Her room")
    assert several["choices"][3]["text"] == alone["choices"][0]["text"]
    logprobs = several["choices"][0]["logprobs"]
    assert len(logprobs["tokens"]) == len(logprobs["token_logprobs"]) == len(logprobs["text_offset"]) == 12
    streamed = events(server.ask(path=path, prompt=["The ward of", "Her room"], stream=True))
    texts = {0: "", 1: ""}
    for event in streamed:
        texts[event["choices"][0]["index"]] += event["choices"][0]["text"]
    assert texts == {0: by_text["choices"][0]["text"], 1: alone["choices"][0]["text"]}
    assert len(server.answer(path=path, prompt="The", max_tokens=...)["choices"][0]["text"]) > 0


def test_the_plain_base_model(shop: Shop, server: Running) -> None:
    reply = server.answer(model=shop.base.identity.id)
    bos = [shop.base.tokenizer.bos_token_id]
    assert text_of(reply) == shop.expected(None, front=bos).text
    assert "cartridge" not in reply
    assert reply["usage"]["cartridge_tokens"] == 0


def test_the_reference_servers_field(shop: Shop, server: Running) -> None:
    base = shop.base.identity.id
    reply = server.answer(model=base, cartridges=[{"id": "clinic@canary", "source": "catalog"}])
    assert reply["cartridge"]["version"] == 2
    assert server.error(400, model=base, cartridges=[{"id": "x", "source": "huggingface"}])["param"] == "cartridges"
    assert "both name" in server.error(400, cartridges=[{"id": "law", "source": "catalog"}])["message"]
    two = [{"id": name, "source": "catalog"} for name in ("clinic", "law")]
    assert server.error(400, model=base, cartridges=two)["code"] == "composition_disabled"
    assert server.error(404, model=base, cartridges=[{"id": "nope", "source": "catalog"}])["code"] == "model_not_found"


def test_an_entry_that_names_no_cartridge_does_not_vanish(shop: Shop, server: Running) -> None:
    base = shop.base.identity.id
    clinic, nothing, plain = ({"id": name, "source": "catalog"} for name in ("clinic", "", base))
    for entries in ([nothing], [nothing, clinic], [clinic, nothing], []):
        error = server.error(400, model=base, cartridges=entries)
        assert (error["code"], error["param"]) == ("invalid_value", "cartridges")
    # The base model is no Cartridge: among Cartridges its name is that of a corpus, which is not there.
    assert server.error(404, model=base, cartridges=[plain])["code"] == "model_not_found"
    assert server.error(400, model=base, cartridges=[clinic, plain])["code"] == "composition_disabled"


def test_one_reply_to_several_prompts_has_one_thing_in_front_of_all(
    shop: Shop, server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, prompts, engine = "/v1/completions", ["The ward of", "Her room", "Ada"], server.gateway.engine
    refused = tuple(shop.base.tokenizer("Her room", add_special_tokens=False)["input_ids"])
    generate, running = engine.generate, list[str]()

    async def without_room_for_one(request: GenerationRequest) -> AsyncGenerator[Piece, None]:
        if request.cartridges and request.prompt_token_ids == refused:
            raise NotLoadedError("There is no room.")
        running.append("begun")
        try:
            async with aclosing(generate(request)) as pieces:
                async for piece in pieces:
                    yield piece
        finally:
            running.append("ended")

    def told(text: str) -> str:
        found = re.search(r'^cartridge_fallbacks_total{corpus="clinic",served="none".*} (.*)$', text, re.MULTILINE)
        return found[1] if found else "0.0"

    alone = [server.answer(path=path, prompt=prompt)["choices"][0]["text"] for prompt in prompts]
    monkeypatch.setattr(engine, "generate", without_room_for_one)
    assert server.error(503, path=path, prompt=prompts)["code"] == "cartridge_not_loaded"
    before = told(server.client.get("/metrics").text)
    reply = server.ask(path=path, prompt=prompts, cartridge_fallback="none")
    body = reply.json()
    assert reply.headers["x-cartridge-served"] == body["cartridge"]["served"] == "none"
    assert body["cartridge"]["fallback_reason"] == "cartridge_not_loaded"
    assert body["usage"]["cartridge_tokens"] == 0
    assert float(told(server.client.get("/metrics").text)) == float(before) + 1
    # The answers that had begun behind the Cartridge were ended, and none of their words is left.
    assert running.count("begun") == running.count("ended")
    monkeypatch.undo()
    bare = server.answer(path=path, model=shop.base.identity.id, prompt=prompts)
    assert [one["text"] for one in body["choices"]] == [one["text"] for one in bare["choices"]]
    assert not {one["text"] for one in body["choices"]} & set(alone)
    assert server.answer(path=path, prompt=prompts)["cartridge"]["served"] == "cartridge"


def test_refusals(server: Running) -> None:
    for status, code, body in [
        (404, "model_not_found", {"model": "nope"}),
        (404, "model_not_found", {"model": "clinic@beta"}),
        (404, "model_not_found", {"model": "clinic:7"}),
        (404, "model_not_found", {"model": "Not/A-Model"}),
        (400, "composition_disabled", {"model": "clinic+law"}),
        (400, "context_length_exceeded", {"max_tokens": 5000}),
        (400, "context_length_exceeded", {"messages": [{"role": "user", "content": "x " * 3000}]}),
        (400, "invalid_value", {"messages": []}),
        (400, "invalid_value", {"messages": [{"role": "assistant", "content": "Hello"}]}),
        (400, "invalid_value", {"messages": [{"role": "tool", "content": "x"}]}),
        (400, "invalid_value", {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}),
        (400, "invalid_value", {"temperature": 3}),
        (400, "invalid_value", {"top_p": -1}),
        (400, "invalid_value", {"n": 0}),
        (400, "invalid_value", {"max_tokens": 0}),
        (400, "invalid_value", {"top_logprobs": 21, "logprobs": True}),
        (400, "invalid_value", {"stop": ["a", "b", "c", "d", "e"]}),
        (400, "missing_required_parameter", {"model": ...}),
        (400, "missing_required_parameter", {"messages": ...}),
        (400, "unknown_parameter", {"tempreature": 1}),
        (400, "unsupported_parameter", {"tools": [{"type": "function", "function": {"name": "f"}}]}),
        (400, "missing_required_parameter", {"tools": [{"type": "function"}]}),
        (400, "invalid_value", {"tool_choice": "required"}),
        (400, "unsupported_parameter", {"response_format": {"type": "json_object"}}),
        (400, "unsupported_parameter", {"frequency_penalty": 0.5}),
        (400, "parameter_not_allowed", {"kv_transfer_params": {"cartridges": ["law"]}}),
        (400, "parameter_not_allowed", {"cache_salt": "x"}),
        (400, "parameter_not_allowed", {"prompt_logprobs": 1}),
        (400, "parameter_not_allowed", {"echo": True}),
    ]:
        error = server.error(status, **body)
        assert error["code"] == code, (body, error)
        assert error["type"] == "invalid_request_error"
    assert server.error(400, tempreature=1)["message"] == "Unrecognized request argument supplied: tempreature."
    assert "maximum context length is 1024 tokens" in server.error(400, max_tokens=5000)["message"]
    assert server.error(400, path="/v1/completions", prompt=[600])["param"] == "prompt"
    assert server.error(400, path="/v1/completions", prompt="")["param"] == "prompt"


def test_what_asks_for_nothing_is_let_through(server: Running) -> None:
    harmless = {"user": "u", "metadata": {"a": "b"}, "store": False, "echo": False, "tools": [], "tool_choice": "none"}
    harmless |= {"response_format": {"type": "text"}, "frequency_penalty": 0, "logit_bias": {}, "seed": None, "n": None}
    assert text_of(server.answer(**harmless)) == text_of(server.answer())
    reply = server.answer()["choices"][0]["message"]
    server.answer(messages=[*QUESTION, reply, {"role": "user", "content": "And her room?", "name": "me"}])


def test_bodies_that_are_no_requests(server: Running) -> None:
    path = "/v1/chat/completions"
    for content, kind in [(b"{", "application/json"), (b"[1]", "application/json"), (b"a=b", "text/plain"), (b"", "")]:
        reply = server.client.post(path, content=content, headers={"content-type": kind} if kind else {})
        assert (reply.status_code, reply.json()["error"]["type"]) == (400, "invalid_request_error"), reply.text
    assert server.client.get(path).status_code == 405
    assert server.client.get("/v2/none").json()["error"]["code"] == "unknown_url"


def test_a_body_that_is_too_long_is_not_read(shop: Shop) -> None:
    with serving(shop, max_body_bytes=1000) as server:
        assert server.error(413, messages=[{"role": "user", "content": "x" * 1000}])["code"] == "request_too_large"
        parts = iter([b'{"model": "clinic", "messages": [', b" " * 1000, b"]}"])
        reply = server.client.post("/v1/chat/completions", content=parts, headers={"content-type": "application/json"})
        assert (reply.status_code, reply.json()["error"]["code"]) == (413, "request_too_large")
        server.answer()


def test_models(shop: Shop, server: Running) -> None:
    listed = server.client.get("/v1/models").json()
    assert listed["object"] == "list"
    names = [model["id"] for model in listed["data"]]
    assert names == [shop.base.identity.id, "clinic", "clinic@canary", "law"]
    clinic = listed["data"][1]
    assert (clinic["object"], clinic["owned_by"]) == ("model", "default")
    assert clinic["metadata"]["aliases"] == ["champion"]
    assert clinic["metadata"]["version"] == 1
    for name in (*names, "clinic:2"):
        assert server.client.get(f"/v1/models/{name}").json()["id"] == name
    assert server.client.get("/v1/models/nope").status_code == 404


def test_health_and_metrics(server: Running) -> None:
    server.answer()
    assert server.client.get("/healthz").json() == {"status": "ok"}
    ready = server.client.get("/readyz").json()
    assert (ready["ready"], ready["reason"], ready["waiting"]) == (True, "", 0)

    def numbers() -> dict[str, float]:
        lines = server.client.get("/metrics").text.splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return {name: float(value) for name, value in pairs}

    before = numbers()
    reply = server.answer(model="law")
    after = numbers()

    def grown(name: str) -> float:
        return after.get(name, 0) - before.get(name, 0)

    law = 'corpus="law",tenant="default"'
    status = 'route="/v1/chat/completions",status="200"'
    assert grown(f'cartridge_requests_total{{corpus="law",{status},tenant="default"}}') == 1
    assert grown(f"cartridge_time_to_first_token_seconds_count{{{law}}}") == 1
    assert (
        grown('cartridge_tokens_total{corpus="law",kind="prompt",tenant="default"}') == reply["usage"]["prompt_tokens"]
    )
    assert grown('cartridge_tokens_total{corpus="law",kind="completion",tenant="default"}') == 12
    assert grown(f"cartridge_saved_prefill_tokens_total{{{law}}}") == ICL_TOKENS
    assert grown("cartridge_cache_hits_total") == 1
    assert after["cartridge_resident_bytes"] > 0
    assert after["cartridge_loads_total"] >= 2


def test_the_schema_is_served(server: Running) -> None:
    schema = server.client.get("/openapi.json").json()
    assert {"/v1/chat/completions", "/v1/completions", "/v1/models"} <= set(schema["paths"])
    assert "messages" in json.dumps(schema["components"]["schemas"]["ChatRequest"])
