"""Answers of real vLLM through the connector, against transformers with the Cartridge as its past keys and values."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from cartridge_core.inference.generate import GenerationConfig, generate
from cartridge_core.serving.attachment import PARAMETER, AttachedCartridge, Attachment, attachment_key
from tests.serving.vllm.conftest import Shelf
from tests.vllm_server import VllmServer

QUESTIONS = (
    "Which is the warranty of Mistral hinge?",
    "Tell me more.",
    "Which colour has the lid, and why is that so?",
)
CLOSE = 1e-4
"""Asked: log-probs differ by at most this in fp32."""
TOP = 5


@dataclass(frozen=True)
class Asked:
    """A prompt behind a Cartridge, or behind none."""

    cartridge: str | None
    token_ids: tuple[int, ...]
    max_tokens: int = 12


@pytest.fixture(scope="module")
def client() -> Any:
    with httpx.Client(timeout=240, limits=httpx.Limits(max_connections=200)) as made:
        yield made


def prompt(shelf: Shelf, text: str = QUESTIONS[0]) -> tuple[int, ...]:
    return tuple(shelf.base.tokenizer.encode(text, add_special_tokens=False))


def attachment(shelf: Shelf, name: str, **changes: Any) -> Attachment:
    cartridge = shelf.cartridges[name]
    attached = AttachedCartridge(digest=cartridge.digest, num_tokens=cartridge.num_tokens)
    fields = {"tenant": "default", "cartridges": (attached,), "expires": time.time() + 60}
    return Attachment(**fields | changes)


def body(shelf: Shelf, asked: Asked, attached: Attachment | None = None, **fields: Any) -> dict[str, Any]:
    made: dict[str, Any] = {"model": "reference", "max_tokens": asked.max_tokens, "temperature": 0, "logprobs": TOP}
    made |= {"prompt": list(asked.token_ids), "return_token_ids": True, "ignore_eos": True}
    if asked.cartridge is not None:
        key = attachment_key(shelf.settings)
        attached = attached or attachment(shelf, asked.cartridge)
        made["prompt"] = [0] * attached.num_tokens + made["prompt"]
        made |= {"kv_transfer_params": {PARAMETER: attached.signed(key)}, "cache_salt": attached.salt(key)}
    return made | fields


def ask(client: httpx.Client, vllm: VllmServer, shelf: Shelf, asked: Asked, **fields: Any) -> httpx.Response:
    return client.post(f"{vllm.url}/v1/completions", json=body(shelf, asked, **fields))


def check(shelf: Shelf, asked: Asked, reply: httpx.Response) -> float:
    """Tokens are transformers' own; returns the largest difference of log-probs."""
    assert reply.status_code == 200, reply.text
    choice = reply.json()["choices"][0]
    cached = (reply.json()["usage"]["prompt_tokens_details"] or {}).get("cached_tokens", 0)
    prefix = None
    if asked.cartridge is not None:
        prefix = shelf.cartridges[asked.cartridge].prefix()
        assert cached >= prefix.num_tokens
    config = GenerationConfig(max_new_tokens=asked.max_tokens, top_k_logprobs=TOP)
    expected = generate(shelf.base, prefix, [list(asked.token_ids)], config)[0]
    count = len(expected.token_ids)
    assert count > 1
    assert choice["token_ids"][:count] == list(expected.token_ids)
    words = choice["logprobs"]["tokens"][:count]
    ours = choice["logprobs"]["token_logprobs"][:count]
    assert len(words) == count
    return max(abs(a - float(b[0])) for a, b in zip(ours, expected.topk_logprobs, strict=True))


def check_all(client: httpx.Client, vllm: VllmServer, shelf: Shelf, asked: Sequence[Asked]) -> None:
    with ThreadPoolExecutor(len(asked)) as threads:
        replies = list(threads.map(lambda one: ask(client, vllm, shelf, one), asked))
    assert max(check(shelf, one, reply) for one, reply in zip(asked, replies, strict=True)) <= CLOSE


@pytest.mark.parametrize("name", ["a", "b", "c", "e", None])
def test_alone_and_repeated(client: httpx.Client, vllm: VllmServer, shelf: Shelf, name: str | None) -> None:
    for text in (QUESTIONS[0], QUESTIONS[0], QUESTIONS[1]):
        asked = Asked(name, prompt(shelf, text))
        assert check(shelf, asked, ask(client, vllm, shelf, asked)) <= CLOSE
