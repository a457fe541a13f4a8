"""Answers of real vLLM through the connector, against transformers with the Cartridge as its past keys and values."""

import re
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from cartridge_core.inference.score import logits_behind
from cartridge_core.rendering import render_turns
from cartridge_core.serving.attachment import PARAMETER, AttachedCartridge, Attachment, attachment_key
from tests.serving.shop import eventually
from tests.serving.vllm.conftest import Shelf, put
from tests.vllm_server import VllmServer

QUESTIONS = ("Which is the warranty of Mistral hinge?", "Tell me more.", "Which colour has the lid, and why?")
CLOSE = 1e-4
"""Asked: log-probs in fp32 differ by at most this."""
TOP = 5


@dataclass(frozen=True)
class Asked:
    """A prompt behind Cartridges, or behind none."""

    front: tuple[str, ...]
    text: str = QUESTIONS[0]
    max_tokens: int = 12


class Client:
    """Sends requests as the gateway does, and knows what transformers answers."""

    def __init__(self, vllm: VllmServer, shelf: Shelf) -> None:
        self.vllm, self.shelf, self.model = vllm, shelf, shelf.base.identity.id
        self.http = httpx.Client(base_url=vllm.url, timeout=240, limits=httpx.Limits(max_connections=200))
        self.key = attachment_key(shelf.settings)

    def prompt(self, text: str) -> list[int]:
        turns = [{"role": "user", "content": text}]
        return render_turns(self.shelf.base.tokenizer, turns, add_generation_prompt=True).token_ids

    def attachment(self, *names: str, **changes: Any) -> Attachment:
        cartridges = [self.shelf.cartridges[name] for name in names]
        attached = tuple(AttachedCartridge(digest=c.digest, num_tokens=c.num_tokens) for c in cartridges)
        return Attachment(**{"tenant": "default", "cartridges": attached, "expires": time.time() + 60} | changes)

    def body(self, asked: Asked, **fields: Any) -> dict[str, Any]:
        made: dict[str, Any] = {"model": self.model, "max_tokens": asked.max_tokens, "temperature": 0, "logprobs": TOP}
        made |= {"prompt": self.prompt(asked.text), "return_token_ids": True, "ignore_eos": True}
        # Tokens by number: several may have the same text.
        made["return_tokens_as_token_ids"] = True
        if asked.front:
            made |= self.attached(self.attachment(*asked.front), made["prompt"])
        return made | fields

    def attached(self, attachment: Attachment, prompt: list[int]) -> dict[str, Any]:
        return {
            "prompt": [0] * attachment.num_tokens + prompt,
            "kv_transfer_params": {PARAMETER: attachment.signed(self.key)},
            "cache_salt": attachment.salt(self.key),
        }

    def ask(self, asked: Asked, **fields: Any) -> httpx.Response:
        return self.http.post("/v1/completions", json=self.body(asked, **fields))

    def all(self, asked: Sequence[Asked]) -> None:
        """Ask at once, check each."""
        with ThreadPoolExecutor(len(asked)) as threads:
            replies = list(threads.map(self.ask, asked))
        for one, reply in zip(asked, replies, strict=True):
            self.check(one, reply)

    def check(self, asked: Asked, reply: httpx.Response) -> None:
        """Each token is the likeliest to transformers, with the same log-prob."""
        assert reply.status_code == 200, reply.text
        choice, usage = reply.json()["choices"][0], reply.json()["usage"]
        answer = choice["token_ids"]
        assert len(answer) == asked.max_tokens
        prompt, prefix = self.prompt(asked.text), self.shelf.front(asked.front)
        if prefix is not None:
            assert usage["prompt_tokens_details"]["cached_tokens"] >= prefix.num_tokens
        logits = logits_behind(self.shelf.base, prefix, [[*prompt, *answer]])[0]
        expected = logits[len(prompt) - 1 : -1].float().log_softmax(dim=-1)
        assert answer == expected.argmax(dim=-1).tolist()
        seen = choice["logprobs"]["token_logprobs"]
        assert max(abs(a - b) for a, b in zip(seen, expected.amax(dim=-1).tolist(), strict=True)) <= CLOSE
        for tops, row in zip(choice["logprobs"]["top_logprobs"], expected, strict=True):
            likeliest = sorted(tops.values(), reverse=True)[:TOP]
            assert max(abs(a - b) for a, b in zip(likeliest, row.topk(TOP).values.tolist(), strict=False)) <= CLOSE

    def metric(self, name: str) -> float:
        return sum(float(n) for n in re.findall(rf"^{name}\{{.*\}} (\S+)$", self.http.get("/metrics").text, re.M))


@pytest.fixture(scope="module")
def client(vllm: VllmServer, shelf: Shelf) -> Iterator[Client]:
    made = Client(vllm, shelf)
    with made.http:
        yield made


@pytest.mark.parametrize("front", [("a",), ("b",), ("c",), ("e",), ()], ids=lambda front: "+".join(front) or "none")
def test_alone_and_repeated(client: Client, front: tuple[str, ...]) -> None:
    for text in (QUESTIONS[0], QUESTIONS[0], QUESTIONS[1]):
        asked = Asked(front, text)
        client.check(asked, client.ask(asked))


def test_mixed_in_a_batch(client: Client) -> None:
    client.all([Asked(tuple(name), QUESTIONS[i % 3]) for i, name in enumerate(["a", "b", "", "c", "d", "e", "a", "c"])])


def test_two_of_one_length_interleaved(client: Client) -> None:
    client.all([Asked(("c" if i % 2 else "d",), QUESTIONS[i // 2], max_tokens=40) for i in range(6)])


def test_first_requests_of_a_cartridge_at_once(client: Client) -> None:
    client.all([Asked(("first",), text) for text in QUESTIONS])


def test_a_long_prompt_behind_a_cartridge(client: Client) -> None:
    client.all([Asked(("b",), " ".join(QUESTIONS) * 24)])


def test_composed_in_both_orders(client: Client) -> None:
    client.all([Asked(front, text) for front in (("a", "b"), ("b", "a"), ("c", "e", "a")) for text in QUESTIONS[:2]])
    client.all([Asked(("a",)), Asked(("a", "b")), Asked(("b",))])


def test_preempted_and_resumed(client: Client) -> None:
    before = client.metric("vllm:num_preemptions_total")
    # On a busy machine requests may come too slowly to crowd each other out: then more of them at a time.
    for times in (2, 4, 8):
        client.all([Asked((n,), text, max_tokens=150) for n in "abcde" for text in QUESTIONS for _ in range(times)])
        if client.metric("vllm:num_preemptions_total") > before:
            return
    raise AssertionError("No request was preempted.")


def test_what_was_dropped_is_loaded_again(client: Client) -> None:
    asked, fronts = Asked(("e",)), [Asked(("e",)), Asked(("a", "e"))]
    digest = client.shelf.cartridges["e"].digest
    for residency in ("drop", "erase"):
        client.all(fronts)
        attachment = client.attachment("e", residency=residency)
        # One token alone: nothing has to be there to be let go.
        letting_go = {"prompt": [0], "max_tokens": 1, "kv_transfer_params": {PARAMETER: attachment.signed(client.key)}}
        assert client.ask(Asked(()), **letting_go).status_code == 200
        # Files go behind the answer.
        held = residency == "drop"
        assert eventually(lambda: (digest in client.http.get("/cartridges").json()["held"]) is held)  # noqa: B023
        client.http.post("/reset_prefix_cache")
        client.check(asked, client.ask(asked))


def test_chat_takes_the_same_tokens(client: Client) -> None:
    asked = Asked(("a",))
    made = client.body(asked)
    parameters = made["kv_transfer_params"] | {"prompt_token_ids": made["prompt"]}
    messages = [{"role": "user", "content": "Not this."}]
    body = {
        "model": client.shelf.base.identity.id,
        "messages": messages,
        "kv_transfer_params": parameters,
        "max_tokens": 12,
    }
    reply = client.http.post("/v1/chat/completions", json=body | {"temperature": 0, "cache_salt": made["cache_salt"]})
    assert reply.status_code == 200, reply.text
    told = client.ask(asked, ignore_eos=False).json()["choices"][0]["text"]
    assert reply.json()["choices"][0]["message"]["content"] == told


def test_placeholders_alone_are_no_cartridge(client: Client) -> None:
    plain = client.ask(Asked(("c",))).json()["choices"][0]
    bare = client.ask(Asked(("c",)), kv_transfer_params=None)
    assert bare.json()["usage"]["prompt_tokens_details"]["cached_tokens"] >= 64  # with the secret salt: they are there
    without = client.ask(Asked(("c",)), kv_transfer_params=None, cache_salt="guessed").json()["choices"][0]
    assert without["logprobs"]["token_logprobs"] != plain["logprobs"]["token_logprobs"]


def test_a_clients_salt_changes_nothing(client: Client) -> None:
    asked = Asked(("d",))
    client.check(Asked(("c",)), client.ask(Asked(("c",)), cache_salt="mine"))
    client.check(asked, client.ask(asked, cache_salt="mine"))


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"expires": 1.0}, 403, "attachment_refused"),
        ({"tenant": "other"}, 403, "attachment_refused"),
    ],
)
def test_what_may_not_come_in(client: Client, change: dict[str, Any], status: int, code: str) -> None:
    fields = client.attached(client.attachment("a", **change), client.prompt(QUESTIONS[0]))
    reply = client.ask(Asked(("a",)), **fields)
    assert (reply.status_code, reply.json()["error"]["code"]) == (status, code)


@pytest.mark.parametrize("signed", ["", "a.b", "x" * 9000, {"digest": "a"}, 7])
def test_what_nobody_signed(client: Client, signed: object) -> None:
    reply = client.ask(Asked(("a",)), kv_transfer_params={PARAMETER: signed})
    assert (reply.status_code, reply.json()["error"]["code"]) == (403, "attachment_refused")


def test_another_key_opens_nothing(client: Client) -> None:
    forged = client.attachment("a").signed(b"another key, as long as the right one")
    assert client.ask(Asked(("a",)), kv_transfer_params={PARAMETER: forged}).status_code == 403


def test_past_the_door_the_connector_refuses_and_the_engine_lives(client: Client) -> None:
    asked = Asked(("a",))
    forged = client.attachment("a").signed(b"another key, as long as the right one")
    # The name in escapes: the door looks for its bytes.
    for body in (
        client.body(asked, kv_transfer_params={PARAMETER: forged}),
        client.body(asked) | {"prompt": [0] * 10},
        client.body(asked, prompt_logprobs=1),
    ):
        raw = httpx.Request("POST", "http://x", json=body).content.replace(b'"cartridge_', b'"\\u0063artridge_')
        reply = client.http.post("/v1/completions", content=raw, headers={"content-type": "application/json"})
        assert reply.status_code == 500, reply.text
    client.check(asked, client.ask(asked))


def test_damaged_files_are_refused_and_whole_ones_taken(client: Client) -> None:
    cartridge = client.shelf.new("damaged")
    tensors = client.shelf.stored("damaged") / "cartridge.safetensors"
    whole = tensors.read_bytes()
    tensors.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    reply = client.ask(Asked(("damaged",)))
    assert (reply.status_code, reply.json()["error"]["code"]) == (500, "cartridge_damaged")
    put(client.shelf.settings, cartridge, client.shelf.folder / "damaged" / "cartridge")
    client.check(Asked(("damaged",)), client.ask(Asked(("damaged",))))


def test_a_copy_damaged_after_it_was_verified_fails_alone(client: Client) -> None:
    client.shelf.new("later")
    loaded = client.http.post("/cartridges/load", json={"attachment": client.attachment("later").signed(client.key)})
    digest = client.shelf.cartridges["later"].digest
    assert digest in {one["digest"] for one in loaded.json()["cartridges"]}
    copy = client.vllm.process.folder / "engine" / "cache" / digest / "cartridge.safetensors"
    copy.write_bytes(copy.read_bytes()[:-1] + b"\x55")
    assert client.ask(Asked(("later",))).status_code == 500
    client.all([Asked(("a",)), Asked(("b",))])
