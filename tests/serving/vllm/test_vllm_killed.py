"""vLLM killed while it answers, and started again where it was: what callers of one and the same gateway see."""

from collections.abc import Callable
from pathlib import Path

import httpx
import psutil

from cartridge_core.catalog import catalog_session
from cartridge_core.catalog.api_keys import create_api_key
from tests.serving.shop import Running, Shop, broken_off, eventually, serving
from tests.serving.test_admin import Operator
from tests.serving.vllm.test_vllm_engine import LONG, beside, streamed, text_of, written
from tests.vllm_server import VllmServer


def core_of(vllm: VllmServer) -> psutil.Process:
    """The process that computes."""
    children = psutil.Process(vllm.process.pid).children(recursive=True)
    return max(children, key=lambda child: child.memory_info().rss)


def kept(vllm: VllmServer) -> set[str]:
    """What vLLM was told to keep."""
    said = httpx.get(f"{vllm.url}/cartridges").json()["cartridges"]
    return {one["digest"] for one in said if one["pinned"]}


def broken(server: Running, kill: Callable[[], None], key: str | None = None) -> None:
    """A stream in whose middle vLLM dies, and what is asked afterwards."""
    headers = {"authorization": f"Bearer {key}"}
    asked = LONG | {"stream": True}
    with server.client.stream("POST", "/v1/chat/completions", json=asked, headers=headers) as reply:
        pieces = reply.iter_text()
        said = [next(pieces) for _ in range(8)]
        kill()
        said += list(pieces)
    assert broken_off("".join(said))["code"] == "engine_error"
    for stream in (False, True):
        refused = server.ask(stream=stream, key=key)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_error")
        assert int(refused.headers["retry-after"]) > 0
    assert eventually(lambda: server.client.get("/readyz").status_code == 503)


def test_killed_in_the_middle_of_a_stream_and_back_again(shop: Shop, vllm: VllmServer, tmp_path: Path) -> None:
    mine = beside(shop, tmp_path)
    law = mine.add("law", 1, "champion", start=250).digest
    mine.add("clinic", 1, "champion", start=250)
    right = mine.expected("clinic").text
    with catalog_session(mine.settings) as session:
        _, key = create_api_key(session, "default", "ops", operator=True)
    with serving(mine, vllm_urls=(vllm.url,)) as server:
        assert text_of(server.answer(key=key)) == right
        Operator(server, key).post("cartridges/pin", model="law")
        assert kept(vllm) == {law}
        broken(server, vllm.process.kill, key)
        vllm.start()
        assert eventually(lambda: server.client.get("/readyz").status_code == 200)
        assert text_of(server.answer(key=key)) == written(streamed(server, model="clinic", key=key)) == right
        # The new process knew nothing of what the old one had been told to keep.
        assert eventually(lambda: kept(vllm) == {law})
        Operator(server, key).post("cartridges/pin", model="law", pinned=False)
        assert not kept(vllm)


def test_only_the_process_that_computes_is_killed(shop: Shop, vllm: VllmServer) -> None:
    # The server in front of it still speaks: what it says must not pass for the end of an answer.
    with serving(shop, vllm_urls=(vllm.url,)) as server:
        server.answer()
        broken(server, core_of(vllm).kill)
