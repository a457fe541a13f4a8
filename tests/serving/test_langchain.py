"""LangChain's ChatOpenAI against a listening gateway, as its users write it: nothing but the address is different."""

import asyncio
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.rate_limiters import InMemoryRateLimiter
from langchain_openai import ChatOpenAI

from cartridge_core.catalog import catalog_session
from cartridge_core.catalog.api_keys import create_api_key
from tests.conftest import build_tiny_base
from tests.serving.shop import QUESTION, Running, Shop, serving

TEXT = QUESTION[0]["content"]
LOOK = {"type": "function", "function": {"name": "look", "parameters": {}}}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    shop = Shop(build_tiny_base("qwen2"), tmp_path_factory.mktemp("shop"))
    shop.add("clinic", 1, "champion")
    shop.add("clinic", 2, "canary")
    with catalog_session(shop.settings) as session:
        shop.key = create_api_key(session, "default", "app")[1]  # type: ignore[attr-defined]
    return shop


@pytest.fixture(scope="module")
def server(shop: Shop) -> Iterator[Running]:
    with serving(shop) as running:
        yield running


def chat(server: Running, shop: Shop, **more: Any) -> ChatOpenAI:
    wanted: dict[str, Any] = {"model": "clinic", "temperature": 0, "max_tokens": 12, "max_retries": 0, "timeout": 30}
    key = shop.key  # type: ignore[attr-defined]
    return ChatOpenAI(**({"base_url": f"{server.url}/v1", "api_key": key} | wanted | more))


def test_invoke(server: Running, shop: Shop) -> None:
    reply = chat(server, shop).invoke(TEXT)
    expected = shop.expected("clinic")
    assert reply.content == expected.text
    assert reply.response_metadata["finish_reason"] == "length"
    assert reply.response_metadata["model_name"] == "clinic"
    assert reply.usage_metadata is not None
    assert reply.usage_metadata["output_tokens"] == len(expected.token_ids)
    assert reply.usage_metadata["input_tokens"] == len(shop.prompt())
    canary = chat(server, shop, model="clinic@canary").invoke(TEXT)
    assert canary.content == shop.expected("clinic", 2).text


def test_stream(server: Running, shop: Shop) -> None:
    chunks = list(chat(server, shop, stream_usage=True).stream(TEXT))
    assert "".join(str(chunk.content) for chunk in chunks) == shop.expected("clinic").text
    assert sum(bool(chunk.content) for chunk in chunks) > 3
    (usage,) = [chunk.usage_metadata for chunk in chunks if chunk.usage_metadata]
    assert usage["output_tokens"] == 12

    async def streamed() -> str:
        return "".join([str(chunk.content) async for chunk in chat(server, shop).astream(TEXT)])

    assert asyncio.run(streamed()) == shop.expected("clinic").text


def test_a_chain_with_a_template_and_a_past(server: Running, shop: Shop) -> None:
    limiter = InMemoryRateLimiter(requests_per_second=1000)
    prompt = ChatPromptTemplate.from_messages([("system", "Be short."), ("user", "{question}")])
    chain = prompt | chat(server, shop, rate_limiter=limiter) | StrOutputParser()
    said = [{"role": "system", "content": "Be short."}, {"role": "user", "content": TEXT}]
    assert chain.batch([{"question": TEXT}] * 3) == [shop.expected("clinic", messages=said).text] * 3
    past = [SystemMessage("Be short."), HumanMessage(TEXT), AIMessage("Green."), HumanMessage("And her room?")]
    said += [{"role": "assistant", "content": "Green."}, {"role": "user", "content": "And her room?"}]
    assert chat(server, shop).invoke(past).content == shop.expected("clinic", messages=said).text


def test_refusals_are_the_sdks(server: Running, shop: Shop) -> None:
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        chat(server, shop, model="law").invoke(TEXT)
    with pytest.raises(openai.AuthenticationError):
        chat(server, shop, api_key="wrong").invoke(TEXT)
    with pytest.raises(openai.BadRequestError, match="maximum context length"):
        chat(server, shop).invoke("x " * 3000)
    with pytest.raises(openai.BadRequestError, match="tools"):
        chat(server, shop).bind_tools([LOOK]).invoke(TEXT)
