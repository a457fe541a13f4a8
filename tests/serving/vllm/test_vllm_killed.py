"""vLLM killed while it answers, and started again where it was: what callers of one and the same gateway see."""

from collections.abc import Callable

import psutil

from tests.serving.shop import Running, Shop, broken_off, eventually, serving
from tests.serving.vllm.test_vllm_engine import LONG, streamed, text_of, written
from tests.vllm_server import VllmServer


def core_of(vllm: VllmServer) -> psutil.Process:
    """The process that computes."""
    assert vllm.process is not None
    children = psutil.Process(vllm.process.pid).children(recursive=True)
    return max(children, key=lambda child: child.memory_info().rss)


def broken(server: Running, kill: Callable[[], None]) -> None:
    """A stream in whose middle vLLM dies, and what is asked afterwards."""
    with server.client.stream("POST", "/v1/chat/completions", json=LONG | {"stream": True}) as reply:
        pieces = reply.iter_text()
        said = [next(pieces) for _ in range(8)]
        kill()
        said += list(pieces)
    assert len(said) >= 8 and broken_off("".join(said))["code"] == "engine_error"
    for stream in (False, True):
        refused = server.ask(stream=stream)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_error")
        assert int(refused.headers["retry-after"]) > 0
    assert eventually(lambda: server.client.get("/readyz").status_code == 503)


def test_killed_in_the_middle_of_a_stream_and_back_again(shop: Shop, vllm: VllmServer) -> None:
    right = shop.expected("clinic").text
    with serving(shop, vllm_urls=(vllm.url,)) as server:
        assert text_of(server.answer()) == right
        broken(server, vllm.kill)
        vllm.start()
        assert eventually(lambda: server.client.get("/readyz").status_code == 200)
        assert text_of(server.answer()) == written(streamed(server, model="clinic")) == right


def test_only_the_process_that_computes_is_killed(shop: Shop, vllm: VllmServer) -> None:
    # The server in front of it still speaks: what it says must not pass for the end of an answer.
    with serving(shop, vllm_urls=(vllm.url,)) as server:
        server.answer()
        broken(server, core_of(vllm).kill)
