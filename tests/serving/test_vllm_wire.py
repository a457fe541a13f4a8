"""What the gateway and vLLM say to each other, without a server: routing, refusals, streams that are not right."""

import asyncio
import json
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from cartridge_core.serving.engine import GenerationRequest, Piece
from cartridge_core.serving.errors import EngineError, OverloadedError
from cartridge_core.serving.replica import Replica
from cartridge_core.serving.replicas import Replicas
from cartridge_core.serving.sampling_params import SamplingParams
from cartridge_core.serving.vllm_answer import AnswerReader, CartridgeMissedError
from cartridge_core.serving.vllm_body import Bodies
from cartridge_core.serving.vllm_refusal import refusal

DIGESTS = [f"{number:064x}" for number in range(200)]


def replicas(count: int, max_outstanding: int = 1000) -> Replicas:
    made = [Replica(number, f"http://engine-{number}:8001", 1.0) for number in range(1, count + 1)]
    for replica in made:
        replica.problem = None
    return Replicas(made, "reference", 4096, max_outstanding)


def test_a_cartridge_stays_with_one_server_and_cartridges_spread() -> None:
    three = replicas(3)
    homes = {digest: three.choose(digest).number for digest in DIGESTS}
    assert homes == {digest: three.choose(digest).number for digest in DIGESTS}
    assert min(Counter(homes.values()).values()) > 40
    three.all[0].problem = "does not answer"
    after = {digest: three.choose(digest).number for digest in DIGESTS}
    # Only those of the lost server move.
    assert all(after[digest] == home for digest, home in homes.items() if home != 1)
    assert {after[digest] for digest, home in homes.items() if home == 1} == {2, 3}


def test_a_busy_home_is_helped_and_the_rest_goes_where_least_is_under_way() -> None:
    three = replicas(3)
    home = three.choose(DIGESTS[0])
    home.outstanding = 3
    assert three.choose(DIGESTS[0]) is home
    home.outstanding = 20
    assert three.choose(DIGESTS[0]) is not home
    for other in three.all:
        other.outstanding = 18
    assert three.choose(DIGESTS[0]) is home
    three.all[1].outstanding = 5
    assert three.choose("") is three.all[1]


def test_nobody_well_and_nobody_free_are_told_apart() -> None:
    two = replicas(2, max_outstanding=4)
    for one in two.all:
        one.outstanding = 4
    with pytest.raises(OverloadedError) as full:
        two.choose("")
    assert full.value.retry_after
    two.all[0].outstanding = 3
    assert two.choose(DIGESTS[0], 1) is two.all[0]
    with pytest.raises(OverloadedError):
        two.choose("", 2)
    for one in two.all:
        one.leave_out("does not answer")
    with pytest.raises(EngineError) as nobody:
        two.choose("")
    assert nobody.value.retry_after


@pytest.mark.parametrize(
    ("status", "error", "code"),
    [
        (503, {"message": "m", "code": "cartridge_not_loaded"}, "cartridge_not_loaded"),
        (503, {"message": "m", "code": "artifact_unavailable"}, "artifact_unavailable"),
        (500, {"message": "m", "code": "cartridge_damaged"}, "cartridge_damaged"),
        (403, {"message": "m", "code": "attachment_refused"}, "engine_error"),
        (400, {"message": "This model's maximum context length is 9 tokens.", "code": 400}, "context_length_exceeded"),
        (400, {"message": "bad grammar", "code": 400, "param": "response_format"}, "invalid_value"),
        (404, {"message": "no such model", "code": 404}, "engine_error"),
        (503, {"message": "busy", "code": 503}, "engine_overloaded"),
        (429, {"message": "busy", "code": 429}, "engine_overloaded"),
        (500, {"message": "boom at 10.0.0.7", "code": 500}, "engine_error"),
    ],
)
def test_refusals(status: int, error: dict[str, Any], code: str) -> None:
    found = refusal(status, json.dumps({"error": error}).encode(), "7")
    assert found.code == code
    assert found.param == error.get("param")
    if found.status == 503:
        assert found.retry_after == 7
    if code == "engine_error":
        assert error["message"] not in str(found) and error["message"] in str(found.__cause__)
    assert refusal(status, b"<html>", None).status >= 400


@contextmanager
def plain_server(**paths: tuple[int, Any]) -> Iterator[str]:
    """A server that gives these answers to GET, and 404 to all else: vLLM as it is without the door."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, said = paths.get(self.path.rsplit("/", 1)[1], (404, {"detail": "Not Found"}))
            content = b"" if said is None else json.dumps(said).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def seen(url: str, *, served: str | None = None) -> Replica:
    """A server after one look at it."""
    replica = Replica(1, url, 1.0)
    if served is not None:
        replica.problem = None
        replica.served.add(served)

    async def look() -> None:
        looking = Replicas([replica], "reference", 4096, 10)
        await looking.start()
        await looking.close()

    asyncio.run(look())
    return replica


MODELS = (200, {"data": [{"id": "reference", "max_model_len": 4096}]})
DOOR = (200, {"cartridges": [], "hits": 0, "fetches": 0, "failed_fetches": 0})


def test_what_is_left_out_and_why() -> None:
    with plain_server(health=(200, None), models=MODELS, cartridges=DOOR) as url:
        assert seen(url).problem is None
        assert seen(url, served="a").served == {"a"}
    with plain_server(health=(200, None), models=MODELS) as url:
        assert "without the Cartridge connector" in str(seen(url).problem)
    with plain_server(health=(503, None), models=MODELS, cartridges=DOOR) as url:
        left_out = seen(url, served="a")
        assert "answered 503" in str(left_out.problem) and not left_out.served
    for entry, word in [({"id": "other"}, "serves 'other'"), ({"id": "reference", "max_model_len": 9}, "window = 9")]:
        with plain_server(health=(200, None), models=(200, {"data": [entry]}), cartridges=DOOR) as url:
            assert word in str(seen(url).problem)
    assert seen("http://127.0.0.1:9").problem == "does not answer"


def event(text: str = "", finish: str | None = None, tokens: int = 1, index: int = 0, **more: Any) -> dict[str, Any]:
    choice = {"index": index, "text": text, "logprobs": None, "finish_reason": finish}
    return {"choices": [choice], "usage": {"completion_tokens": tokens}, **more}


def counted(cached: int | None) -> dict[str, Any]:
    details = None if cached is None else {"cached_tokens": cached}
    return {"choices": [], "usage": {"completion_tokens": 2, "prompt_tokens_details": details}}


def read(*events: Any, front: int = 0, size: int = 7) -> list[Piece]:
    """Pieces of a stream that arrives in parts of `size` bytes."""
    sent = b"".join(
        b"data: " + (e if isinstance(e, bytes) else json.dumps(e, ensure_ascii=False).encode()) + b"\n\n"
        for e in events
    )
    pieces: list[Piece] = []

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(sent), size):
            yield sent[start : start + size]

    async def gather() -> None:
        async for piece in AnswerReader(front, None).stream(chunks()):
            pieces.append(piece)

    try:
        asyncio.run(gather())
    except EngineError as error:
        error.pieces = pieces  # type: ignore[attr-defined]
        raise
    return pieces


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_a_stream_in_any_parts(size: int) -> None:
    events = [event("Grün, ", tokens=2), event("yes", index=1), event("ok.", "stop", 5), event("", "length", 3, 1)]
    found = read(*events, counted(64), b"[DONE]", front=64, size=size)
    assert [(p.text, p.index, p.num_tokens, p.finish_reason) for p in found] == [
        ("Grün, ", 0, 2, None),
        ("yes", 1, 1, None),
        ("ok.", 0, 3, "stop"),
        ("", 1, 2, "length"),
    ]


@pytest.mark.parametrize("cached", [63, 0, None])
def test_an_answer_past_the_cartridge_never_ends_as_one(cached: int | None) -> None:
    with pytest.raises(CartridgeMissedError) as missed:
        read(event("a"), event("b", "stop", 2), counted(cached), b"[DONE]", front=64)
    assert [piece.finish_reason for piece in missed.value.pieces] == [None]  # type: ignore[attr-defined]
    whole = {"choices": [event("b", "stop")["choices"][0]], "usage": counted(cached)["usage"]}
    with pytest.raises(CartridgeMissedError):
        AnswerReader(64, None).whole(json.dumps(whole).encode())


@pytest.mark.parametrize(
    "events",
    [
        [event("a")],
        [event("a"), event("b", "stop", 2)],
        [event("a"), b"[DONE]"],
        [event("a"), {"error": {"message": "Internal server error", "code": 500}}, b"[DONE]"],
        [event("a"), event("", "abort", 1), counted(64), b"[DONE]"],
        [b"{", b"[DONE]"],
    ],
)
def test_a_stream_that_breaks_off_is_an_error(events: list[Any]) -> None:
    with pytest.raises(EngineError):
        read(*events, front=64)


def test_tenants_share_no_blocks() -> None:
    bodies = Bodies("reference", b"k" * 32)
    sampling = SamplingParams(max_tokens=4, top_p=0.0)
    one, again, other = (
        bodies.completion(GenerationRequest("id", tenant, (7, 8), sampling), whole=False) for tenant in ("a", "a", "b")
    )
    assert one["cache_salt"] == again["cache_salt"] != other["cache_salt"]
    assert one["request_id"] != again["request_id"]
    assert Bodies("reference", b"x" * 32).completion(GenerationRequest("id", "a", (7,), sampling), False)[
        "cache_salt"
    ] not in (one["cache_salt"], other["cache_salt"])
    assert one["prompt"] == [7, 8] and 0 < one["top_p"] < 1e-6
