"""The gateway in front of a real vLLM server."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from cartridge_core.catalog import catalog_session
from cartridge_core.catalog.api_keys import create_api_key
from cartridge_core.rendering import bare_prefix_token_ids
from cartridge_core.serving.replica import Replica
from cartridge_core.serving.replicas import Replicas
from tests.serving import shop as shops
from tests.serving.shop import QUESTION, Running, Shop, broken_off, events, eventually, serving
from tests.serving.test_admin import Operator
from tests.serving.test_composition import expected, graded
from tests.serving.vllm.conftest import BASE, KEY
from tests.serving.vllm.relay import Relay, relay
from tests.vllm_server import VllmServer

DEAD = "http://127.0.0.1:9"
# The end token is forbidden.
LONG: dict[str, Any] = {"model": "clinic", "messages": QUESTION, "max_tokens": 3000, "logit_bias": {"5": -100}}


@pytest.fixture(scope="module")
def server(shop: Shop, vllm: VllmServer) -> Iterator[Running]:
    with serving(shop, vllm_urls=(vllm.url,)) as running:
        yield running


@pytest.fixture
def relayed(vllm: VllmServer) -> Iterator[Relay]:
    with relay(vllm.url) as made:
        yield made


def beside(shop: Shop, folder: Path, **settings: Any) -> Shop:
    """Another catalog over the same artifact store."""
    wanted = {"attachment_key": KEY, "base_model": BASE, "artifact_root": shop.settings.artifact_root}
    return Shop(shop.base, folder, **wanted | settings)


def running_in(vllm: VllmServer) -> float:
    """Requests that vLLM itself counts as running or waiting."""
    lines = httpx.get(f"{vllm.url}/metrics").text.splitlines()
    names = ("vllm:num_requests_running{", "vllm:num_requests_waiting{")
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(names))


def streamed(server: Running, **body: Any) -> list[dict[str, Any]]:
    reply = server.ask(stream=True, stream_options={"include_usage": True}, **body)
    assert reply.status_code == 200, reply.text
    return events(reply)


def text_of(reply: dict[str, Any]) -> str:
    # Each answer of the reference model opens with a space, which the library's own text lacks.
    return shops.text_of(reply).strip()


def written(chunks: list[dict[str, Any]], index: int = 0) -> str:
    choices = [choice for chunk in chunks for choice in chunk.get("choices", []) if choice["index"] == index]
    return "".join(choice["delta"].get("content", "") for choice in choices).strip()


def test_a_cartridge_answers_as_transformers_does(shop: Shop, server: Running) -> None:
    assert server.client.get("/readyz").json()["ready"]
    seen = set()
    for corpus in ("clinic", "law"):
        expected = shop.expected(corpus)
        reply = server.answer(model=corpus)
        assert text_of(reply) == expected.text
        assert reply["cartridge"]["served"] == "cartridge"
        chunks = streamed(server, model=corpus)
        assert written(chunks) == expected.text
        assert len(chunks) > len(expected.token_ids) // 2
        ends = [choice["finish_reason"] for chunk in chunks for choice in chunk["choices"]]
        assert ends.count(None) == len(ends) - 1 and ends[-1] == reply["choices"][0]["finish_reason"]
        prompt = len(shop.prompt())
        for usage in (reply["usage"], chunks[-1]["usage"]):
            assert (usage["prompt_tokens"], usage["cartridge_tokens"]) == (prompt, expected_tokens(shop, corpus))
            assert usage["completion_tokens"] == len(expected.token_ids)
        seen.add(expected.text)
    assert len(seen) == 2


def expected_tokens(shop: Shop, corpus: str) -> int:
    return shop.cartridges[corpus, 1].num_tokens


def test_the_base_model_answers_with_log_probs(shop: Shop, server: Running) -> None:
    expected = shop.expected(None, front=bare_prefix_token_ids(shop.base.tokenizer))
    reply = server.answer(model=BASE, logprobs=True, top_logprobs=3)
    assert text_of(reply) == expected.text and "cartridge" not in reply
    entries = reply["choices"][0]["logprobs"]["content"]
    assert len(entries) == reply["usage"]["completion_tokens"] == len(expected.token_ids)
    # vLLM writes each token alone, where this tokenizer's lose the space in front.
    assert "".join(entry["token"] for entry in entries) == expected.text.replace(" ", "") + "<|end|>"
    for entry in entries:
        top = [one["logprob"] for one in entry["top_logprobs"]]
        assert len(top) == 3 and top == sorted(top, reverse=True)
        assert entry["logprob"] == top[0]
    chunks = streamed(server, model=BASE, logprobs=True, top_logprobs=3)
    said = [
        entry
        for chunk in chunks
        for choice in chunk["choices"]
        if choice["logprobs"]
        for entry in choice["logprobs"]["content"]
    ]
    assert [one["token"] for one in said] == [one["token"] for one in entries]
    assert [one["logprob"] for one in said] == pytest.approx([one["logprob"] for one in entries], abs=1e-3)
    text = server.answer(path="/v1/completions", model="clinic", prompt="Ada", logprobs=2, messages=...)
    assert len(text["choices"][0]["logprobs"]["top_logprobs"][0]) == 2


def test_several_answers_seeds_and_stops(server: Running) -> None:
    asked: dict[str, Any] = {"temperature": 1.5, "n": 3, "seed": 7, "max_tokens": 10}
    first, second = server.answer(**asked), server.answer(**asked)
    texts, again = ([choice["message"]["content"].strip() for choice in reply["choices"]] for reply in (first, second))
    assert texts == again
    assert len(set(texts)) == 3 and [choice["index"] for choice in first["choices"]] == [0, 1, 2]
    chunks = streamed(server, **asked)
    assert [written(chunks, index) for index in range(3)] == texts
    assert chunks[-1]["usage"]["completion_tokens"] == first["usage"]["completion_tokens"]
    assert server.answer(**asked | {"seed": 8})["choices"] != first["choices"]
    whole = text_of(server.answer(model=BASE, max_tokens=20))
    stop = whole.split()[2]
    cut = server.answer(model=BASE, max_tokens=20, stop=stop)
    assert text_of(cut) == whole[: whole.index(stop)].strip()
    assert cut["choices"][0]["finish_reason"] == "stop"
    assert text_of(server.answer(temperature=2, top_p=0)) == text_of(server.answer())


def test_fields_of_the_engine(server: Running) -> None:
    schema = {"type": "object", "properties": {"bed": {"type": "integer"}}, "required": ["bed"]}
    form = {"type": "json_schema", "json_schema": {"name": "bed", "schema": schema}}
    reply = server.answer(response_format=form, max_tokens=60)
    if reply["choices"][0]["finish_reason"] == "stop":
        assert isinstance(json.loads(text_of(reply))["bed"], int)
    assert text_of(reply).lstrip().startswith("{")
    assert text_of(server.answer(response_format={"type": "json_object"}, max_tokens=4)).lstrip().startswith("{")
    wrong = {"type": "json_schema", "json_schema": {"name": "bed", "schema": {"type": "nonsense"}}}
    assert server.error(400, response_format=wrong)["code"] == "invalid_value"
    plain = server.answer(max_tokens=24)
    assert server.answer(max_tokens=24, frequency_penalty=2, presence_penalty=2)["choices"] != plain["choices"]
    token = 100
    forced = server.answer(max_tokens=3, logit_bias={str(token): 100}, logprobs=True)
    assert len({entry["token"] for entry in forced["choices"][0]["logprobs"]["content"]}) == 1


def test_functions_are_called(server: Running) -> None:
    schema = {"type": "object", "properties": {"ward": {"enum": ["green", "red"]}}, "required": ["ward"]}
    function = {"name": "look_up", "parameters": schema | {"additionalProperties": False}}
    asked: dict[str, Any] = {"tools": [{"type": "function", "function": function}], "max_tokens": 200}
    for choice in ("required", {"type": "function", "function": {"name": "look_up"}}):
        answer = server.answer(**asked, tool_choice=choice)["choices"][0]
        assert "tool_calls" in answer["message"], answer
        (call,) = answer["message"]["tool_calls"]
        assert answer["message"]["content"] is None
        assert call["function"]["name"] == "look_up"
        assert json.loads(call["function"]["arguments"])["ward"] in ("green", "red")
        assert answer["finish_reason"] == ("tool_calls" if choice == "required" else "stop")
        chunks = events(server.ask(**asked, tool_choice=choice, stream=True))
        deltas = [one["choices"][0]["delta"] for one in chunks if one["choices"]]
        (streamed,) = [delta["tool_calls"][0] for delta in deltas if "tool_calls" in delta]
        assert streamed["function"] == call["function"]
    # Where the model may choose, this one answers as ever.
    free = server.answer(**asked | {"max_tokens": 12})["choices"][0]
    assert free["message"]["content"] and "tool_calls" not in free["message"]


def test_who_goes_away_ends_the_work(server: Running, vllm: VllmServer) -> None:
    with server.client.stream("POST", "/v1/chat/completions", json=LONG | {"stream": True}) as reply:
        lines = reply.iter_lines()
        assert [next(lines) for _ in range(12)]
        assert eventually(lambda: running_in(vllm) == 1)
    assert eventually(lambda: running_in(vllm) == 0)
    with pytest.raises(httpx.ReadTimeout), httpx.Client(base_url=server.url, timeout=0.8) as client:
        client.post("/v1/chat/completions", json=LONG)
    assert eventually(lambda: running_in(vllm) == 0)
    assert eventually(lambda: server.client.get("/readyz").json()["running"] == 0)


def test_a_store_that_fails_is_told_as_it_is(shop: Shop, server: Running) -> None:
    gone, damaged = shop.add("gone", 1, "champion"), shop.add("damaged", 1, "champion")
    root = Path(shop.settings.artifact_root)
    (folder,) = root.rglob(gone.digest)
    folder.rename(folder.with_name("elsewhere"))
    (tensors,) = next(root.rglob(damaged.digest)).rglob("*.safetensors")
    content = bytearray(tensors.read_bytes())
    content[-1] ^= 1
    tensors.write_bytes(content)
    error = server.ask(model="gone")
    assert error.status_code == 503 and int(error.headers["retry-after"]) > 0
    assert error.json()["error"]["code"] == "artifact_unavailable"
    assert server.error(500, model="damaged")["code"] == "cartridge_damaged"
    assert server.error(500, model="damaged", stream=True)["code"] == "cartridge_damaged"
    assert server.answer(model="gone", cartridge_fallback="none")["cartridge"]["fallback_reason"] == (
        "artifact_unavailable"
    )
    folder.with_name("elsewhere").rename(folder)
    assert text_of(server.answer(model="gone")) == shop.expected("gone").text


def test_too_long_for_the_engine(shop: Shop, vllm: VllmServer) -> None:
    with serving(shop, vllm_urls=(vllm.url,), window=2000) as small:
        assert small.error(400, max_tokens=1990)["code"] == "context_length_exceeded"
        assert small.answer(max_tokens=4)


def test_another_key_is_refused_and_not_the_callers_fault(shop: Shop, vllm: VllmServer, tmp_path: Path) -> None:
    other = beside(shop, tmp_path, attachment_key=KEY[::-1])
    other.add("clinic", 1, "champion")
    with serving(other, vllm_urls=(vllm.url,)) as wrong:
        assert wrong.error(503, model="clinic")["code"] == "engine_error"
        assert wrong.answer(model=BASE)


def test_a_dead_server_is_left_out_until_it_is_there(shop: Shop, vllm: VllmServer, relayed: Relay) -> None:
    with serving(shop, vllm_urls=(DEAD, vllm.url)) as both:
        assert both.client.get("/readyz").json()["ready"]
        for _ in range(3):
            assert text_of(both.answer(model="law")) == shop.expected("law").text
    with serving(shop, vllm_urls=(DEAD,)) as none:
        ready = none.client.get("/readyz")
        assert ready.status_code == 503 and "engine 1 does not answer" in ready.json()["reason"]
        refused = none.ask()
        assert refused.status_code == 503 and refused.json()["error"]["code"] == "engine_error"
        assert "retry-after" in refused.headers and "127.0.0.1" not in refused.text
    with serving(shop, vllm_urls=(relayed.url,)) as one:
        relayed.drop_posts = True
        assert one.error(503)["code"] == "engine_error"
        relayed.drop_posts = False
        assert eventually(lambda: one.client.get("/readyz").status_code == 200)
        assert one.answer()


def test_what_has_not_begun_is_asked_of_another_once(shop: Shop, vllm: VllmServer, relayed: Relay) -> None:
    relayed.drop_posts = True
    with serving(shop, vllm_urls=(relayed.url, vllm.url)) as both:
        for stream in (False, True):
            for model in ("clinic", "law", BASE, BASE):
                reply = both.ask(model=model, stream=stream)
                assert reply.status_code == 200 and "error" not in reply.text
        assert relayed.posts >= 1
    with relay(vllm.url) as second:
        second.drop_posts = True
        relayed.posts = 0
        with serving(shop, vllm_urls=(relayed.url, second.url)) as bad:
            assert bad.error(503, model=BASE)["code"] == "engine_error"
            assert (relayed.posts, second.posts) == (1, 1)


def test_a_stream_that_is_cut_ends_in_an_error(shop: Shop, relayed: Relay, vllm: VllmServer) -> None:
    with serving(shop, vllm_urls=(relayed.url, vllm.url)) as one:
        for replica in one.gateway.engine._replicas.all[1:]:  # type: ignore[attr-defined]
            replica.look = _never
            replica.leave_out("is not meant")
        one.answer()
        with one.client.stream(
            "POST",
            "/v1/chat/completions",
            json={
                "model": "clinic",
                "messages": QUESTION,
                "max_tokens": 2000,
                "stream": True,
                "logit_bias": {"5": -100},
            },
        ) as reply:
            lines = reply.iter_lines()
            got = [next(lines) for _ in range(9)]
            relayed.cut()
            got += list(lines)
        assert broken_off("\n".join(got))["code"] == "engine_error"
        assert eventually(lambda: running_in(vllm) == 0)


async def _never(*arguments: Any) -> None:
    return None


def test_operators_load_pin_and_unload(shop: Shop, vllm: VllmServer, tmp_path: Path) -> None:
    ward = beside(shop, tmp_path)
    ward.add("ward", 1, "champion", start=200)
    with catalog_session(ward.settings) as session:
        _, token = create_api_key(session, "default", "ops", operator=True)
    headers = {"authorization": f"Bearer {token}"}
    with serving(ward, vllm_urls=(vllm.url,)) as server:

        def post(what: str, **body: Any) -> int:
            said = server.client.post(f"/admin/cartridges/{what}", json={"model": "ward"} | body, headers=headers)
            return said.status_code

        def listed() -> dict[str, Any]:
            (found,) = server.client.get("/admin/cartridges", headers=headers).json()["cartridges"]
            return dict(found)

        def answered() -> str:
            return text_of(server.answer(model="ward", key=token))

        assert not listed()["resident"] and post("unload") == 404
        assert post("load") == 200 and listed()["resident"]
        assert post("pin") == 200 and listed()["pinned"]
        assert answered() == ward.expected("ward").text
        assert post("pin", pinned=False) == 200 and not listed()["pinned"]
        assert post("unload") == 200 and not listed()["resident"]
        assert answered() == ward.expected("ward").text
        assert eventually(lambda: server.gateway.engine.cache_counts().hits > 0)
        assert server.gateway.engine.cache_counts().resident_bytes > 0


def test_a_server_of_another_model_or_window_is_not_used(shop: Shop, vllm: VllmServer) -> None:
    async def problem(model: str, window: int, url: str = vllm.url) -> str | None:
        replica = Replica(1, url, 5.0)
        replicas = Replicas([replica], model, window, 4)
        await replicas.start()
        await replicas.close()
        return replica.problem

    assert asyncio.run(problem(BASE, 4096)) is None
    assert "serves 'reference' and not 'other'" in str(asyncio.run(problem("other", 4096)))
    assert "takes 4096 tokens and this gateway promises 5000" in str(asyncio.run(problem(BASE, 5000)))


def test_a_composition_answers_as_transformers_does(shop: Shop, vllm: VllmServer, tmp_path: Path) -> None:
    both = beside(shop, tmp_path)
    parts = [both.add(name, 1, "champion", start=300) for name in ("ward", "rules")]
    graded(both, ("ward", 1), ("rules", 1))
    right = expected(both, ("ward", 1), ("rules", 1)).text
    with catalog_session(both.settings) as session:
        _, key = create_api_key(session, "default", "ops", operator=True)
    with serving(both, vllm_urls=(vllm.url,), composition=True) as server:
        operator = Operator(server, key)

        def held() -> list[str]:
            said = server.client.get("/admin/cartridges", headers=operator.headers).json()
            assert not any(one["resident"] for one in said["cartridges"])
            return [one["model"] for one in said["compositions"]]

        operator.post("cartridges/load", model="ward+rules")
        assert held() == ["ward:1+rules:1"]
        reply = server.answer(model="ward+rules", key=key)
        assert text_of(reply) == right
        assert right not in {both.expected(name).text for name in ("ward", "rules")}
        assert reply["usage"]["cartridge_tokens"] == sum(part.num_tokens for part in parts)
        assert written(streamed(server, model="ward:1+rules", key=key)) == right
        assert server.error(400, model="rules+ward", key=key)["code"] == "composition_not_evaluated"
        operator.post("cartridges/unload", model="ward+rules")
        assert held() == []
        assert text_of(server.answer(model="ward+rules", key=key)) == right
        # A part that goes takes what it is part of with it.
        assert text_of(server.answer(model="ward", key=key)) == both.expected("ward").text
        operator.post("cartridges/unload", model="ward")
        assert held() == []
