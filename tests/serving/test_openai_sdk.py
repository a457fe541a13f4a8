"""OpenAI's own Python SDK against a listening gateway: what an application's author writes, unchanged."""

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from cartridge_core.catalog import catalog_session
from cartridge_core.catalog.api_keys import create_api_key
from tests.conftest import build_tiny_base
from tests.serving.shop import ICL_TOKENS, QUESTION, Running, Shop, eventually, running, serving, slow

GREEDY: dict[str, Any] = {"model": "clinic", "messages": QUESTION, "max_tokens": 12, "temperature": 0}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    shop = Shop(build_tiny_base("qwen2"), tmp_path_factory.mktemp("shop"))
    shop.add("clinic", 1, "champion")
    shop.add("clinic", 2, "canary")
    return shop


@pytest.fixture(scope="module")
def server(shop: Shop) -> Iterator[Running]:
    with serving(shop) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[openai.OpenAI]:
    with sdk(server) as client:
        yield client


def sdk(server: Running, key: str = "any", **more: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, **({"max_retries": 0, "timeout": 30} | more))


def test_models(shop: Shop, client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [shop.base.identity.id, "clinic", "clinic@canary"]
    canary = client.models.retrieve("clinic@canary")
    assert (canary.object, canary.owned_by) == ("model", "default")
    assert canary.model_extra is not None and canary.model_extra["metadata"]["version"] == 2


def test_a_chat(shop: Shop, client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(**GREEDY)
    reply, expected = raw.parse(), shop.expected("clinic")
    (choice,) = reply.choices
    assert choice.message.content == expected.text
    assert (choice.finish_reason, choice.message.role) == ("length", "assistant")
    assert reply.usage is not None
    assert reply.usage.completion_tokens == len(expected.token_ids)
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    assert reply.model_extra is not None and reply.model_extra["cartridge"]["saved_tokens"] == ICL_TOKENS - 9
    assert raw.headers["x-cartridge-digest"] == shop.cartridges["clinic", 1].digest
    assert raw.request_id and raw.request_id in reply.id
    # What came is sent back as it came.
    turns = [*QUESTION, choice.message, {"role": "user", "content": "And her room?"}]
    assert client.chat.completions.create(**(GREEDY | {"messages": turns})).choices[0].message.content


def test_a_streamed_chat(shop: Shop, client: openai.OpenAI) -> None:
    text, usages, pieces = "", [], 0
    for chunk in client.chat.completions.create(**GREEDY, stream=True, stream_options={"include_usage": True}):
        usages.append(chunk.usage)
        for choice in chunk.choices:
            text += choice.delta.content or ""
            pieces += bool(choice.delta.content)
    assert text == shop.expected("clinic").text
    assert pieces > 5
    assert usages[-1] is not None and usages[-1].completion_tokens == 12
    assert usages[:-1] == [None] * (len(usages) - 1)
    assert all(chunk.usage is None for chunk in client.chat.completions.create(**GREEDY, stream=True))
    # The SDK's own accumulator, which takes an answer only where it was not cut.
    with client.chat.completions.stream(**GREEDY, stop=[text[4:6]]) as stream:
        stream.until_done()
        assert stream.get_final_completion().choices[0].message.content == text[: text.index(text[4:6])]


def test_text_completions(client: openai.OpenAI) -> None:
    wanted: dict[str, Any] = {"model": "clinic", "max_tokens": 8, "temperature": 0}
    prompts = ["The ward of", "Her room"]
    whole = client.completions.create(prompt=prompts, logprobs=2, **wanted)
    assert [choice.index for choice in whole.choices] == [0, 1]
    texts = {0: "", 1: ""}
    for chunk in client.completions.create(prompt=prompts, stream=True, **wanted):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert [choice.text for choice in whole.choices] == list(texts.values())
    logprobs = whole.choices[0].logprobs
    assert logprobs is not None and logprobs.tokens is not None and len(logprobs.tokens) == 8
    assert logprobs.token_logprobs is not None and max(logprobs.token_logprobs) <= 0


def test_sampling_options(client: openai.OpenAI) -> None:
    wanted = GREEDY | {"temperature": 1.0, "n": 3, "seed": 7, "max_tokens": 20}
    first, second = (client.chat.completions.create(**wanted) for _ in range(2))
    texts = [choice.message.content for choice in first.choices]
    assert len(set(texts)) == 3
    assert texts == [choice.message.content for choice in second.choices]
    assert texts != [c.message.content for c in client.chat.completions.create(**(wanted | {"seed": 8})).choices]
    whole = client.chat.completions.create(**GREEDY).choices[0].message.content
    assert whole is not None
    stopped = client.chat.completions.create(**GREEDY, stop=[whole[4:6]]).choices[0]
    assert (stopped.message.content, stopped.finish_reason) == (whole[: whole.index(whole[4:6])], "stop")
    logprobs = client.chat.completions.create(**GREEDY, logprobs=True, top_logprobs=3).choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None and len(logprobs.content) == 12
    for entry in logprobs.content:
        assert len(entry.top_logprobs) == 3
        assert entry.logprob == max(top.logprob for top in entry.top_logprobs)


def test_the_gateways_own_fields(shop: Shop, client: openai.OpenAI) -> None:
    named = {"cartridges": [{"id": "clinic@canary", "source": "catalog"}], "cartridge_fallback": "refuse"}
    reply = client.chat.completions.create(**(GREEDY | {"model": shop.base.identity.id}), extra_body=named)
    assert reply.model_extra is not None and reply.model_extra["cartridge"]["version"] == 2


def test_many_at_once(shop: Shop, server: Running) -> None:
    async def ask_all() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client:

            async def streamed(model: str) -> str:
                stream = await client.chat.completions.create(**(GREEDY | {"model": model}), stream=True)
                return "".join([choice.delta.content or "" async for chunk in stream for choice in chunk.choices])

            return await asyncio.gather(*(streamed(f"clinic:{1 + i % 2}") for i in range(24)))

    said = asyncio.run(ask_all())
    assert said == [shop.expected("clinic", 1 + i % 2).text for i in range(24)]


def test_refusals_are_the_sdks_own_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(**(GREEDY | {"model": "nope"}))
    assert (missing.value.code, missing.value.param, missing.value.type) == (
        "model_not_found",
        "model",
        "invalid_request_error",
    )
    with pytest.raises(openai.BadRequestError) as long:
        client.chat.completions.create(**(GREEDY | {"max_tokens": 5000}))
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as tools:
        function: Any = {"type": "function", "function": {"name": "ward", "parameters": {}}}
        client.chat.completions.create(**GREEDY, tools=[function])
    assert (tools.value.code, tools.value.param) == ("unsupported_parameter", "tools")
    with pytest.raises(openai.BadRequestError) as unknown:
        client.chat.completions.create(**GREEDY, extra_body={"cache_salt": "mine"})
    assert unknown.value.code == "parameter_not_allowed"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nope")


def test_another_base_model(tmp_path_factory: pytest.TempPathFactory) -> None:
    shop = Shop(build_tiny_base("qwen2"), tmp_path_factory.mktemp("shop"))
    other = Shop(build_tiny_base("llama"), tmp_path_factory.mktemp("other"))
    other.settings = shop.settings
    other.add("law", 1, "champion")
    with serving(shop) as server, sdk(server) as client, pytest.raises(openai.UnprocessableEntityError) as wrong:
        client.chat.completions.create(**(GREEDY | {"model": "law"}))
    assert wrong.value.code == "wrong_base_model"


def test_keys_and_rate_limits(tmp_path_factory: pytest.TempPathFactory) -> None:
    shop = Shop(build_tiny_base("qwen2"), tmp_path_factory.mktemp("shop"))
    shop.add("clinic", 1, "champion")
    with catalog_session(shop.settings) as session:
        _, token = create_api_key(session, "default", "app", requests_per_minute=3)
    with serving(shop) as server:
        with sdk(server, "wrong") as client, pytest.raises(openai.AuthenticationError) as refused:
            client.models.list()
        assert refused.value.code == "invalid_api_key"
        with sdk(server, token) as client:
            for _ in range(3):
                client.chat.completions.create(**GREEDY)
            with pytest.raises(openai.RateLimitError) as limited:
                client.chat.completions.create(**GREEDY)
            assert limited.value.code == "rate_limit_exceeded"
            assert 1 <= int(limited.value.response.headers["retry-after"]) <= 20


def test_the_sdks_retries_get_through_a_load(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(shop, load_wait_s=0.2) as server:
        cache = server.gateway.engine.cache  # type: ignore[attr-defined]  # the local engine's
        load = cache._load
        monkeypatch.setattr(cache, "_load", lambda wanted: (time.sleep(0.8), load(wanted))[1])
        with sdk(server) as client, pytest.raises(openai.InternalServerError) as loading:
            client.chat.completions.create(**GREEDY)
        assert (loading.value.status_code, loading.value.code) == (503, "cartridge_not_loaded")
        with sdk(server, max_retries=3) as client:
            reply = client.chat.completions.create(**GREEDY)
        assert reply.choices[0].message.content == shop.expected("clinic").text


def test_time_outs_and_closed_streams_free_the_engine(shop: Shop) -> None:
    long: dict[str, Any] = GREEDY | {"max_tokens": 900}
    with serving(shop) as server, slow(shop, 0.03):
        with sdk(server, timeout=0.7) as client, pytest.raises(openai.APITimeoutError):
            client.chat.completions.create(**long)
        assert eventually(lambda: running(server) == 0)
        with sdk(server) as client:
            stream = client.chat.completions.create(**long, stream=True)
            next(iter(stream))
            assert running(server) == 1
            stream.close()
            assert eventually(lambda: running(server) == 0)


def test_an_error_in_the_middle_of_a_stream(shop: Shop) -> None:
    left = [6]

    def fail(*arguments: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise RuntimeError("device lost")

    with serving(shop) as server, sdk(server) as client:
        handle = shop.base.model.register_forward_pre_hook(fail)
        try:
            stream = client.chat.completions.create(**GREEDY, stream=True)
            with pytest.raises(openai.APIError) as failed:
                list(stream)
        finally:
            handle.remove()
        assert failed.value.code == "engine_error"
        assert client.chat.completions.create(**GREEDY).choices[0].message.content == shop.expected("clinic").text
