"""When something is missing, broken, slow or gone, a caller gets a typed error or a right answer, never a wrong one."""

import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from cartridge_core.catalog import catalog_session, record_tombstone, retire
from cartridge_core.catalog.models import CartridgeRow
from cartridge_core.rendering import prefix_token_ids
from cartridge_core.stages.ingest import ingest, withdraw_content
from tests.conftest import build_tiny_base
from tests.serving.shop import QUESTION, Shop, broken_off, events, eventually, running, serving, slow, text_of


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    shop = Shop(build_tiny_base("qwen2"), tmp_path)
    shop.add("clinic", 1, "champion")
    return shop


def flip(shop: Shop, corpus: str, version: int) -> None:
    digest = shop.cartridges[corpus, version].digest
    file = Path(shop.settings.artifact_root, "default", "cartridges", digest, "cartridge.safetensors")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def test_a_moved_alias_is_served_within_moments_and_no_request_fails(shop: Shop) -> None:
    shop.add("clinic", 2)
    texts = {version: shop.expected("clinic", version).text for version in (1, 2)}
    with serving(shop) as server, ThreadPoolExecutor(4) as pool:
        over = threading.Event()

        def ask_on() -> list[tuple[int, str]]:
            seen = []
            with httpx.Client(base_url=server.url, timeout=30) as client:
                while not over.is_set():
                    body = {"model": "clinic", "messages": QUESTION, "max_tokens": 12, "temperature": 0}
                    reply = client.post("/v1/chat/completions", json=body)
                    assert reply.status_code == 200, reply.text
                    seen.append((reply.json()["cartridge"]["version"], text_of(reply.json())))
            return seen

        askers = [pool.submit(ask_on) for _ in range(4)]
        time.sleep(0.5)
        shop.point("clinic", 2)
        assert eventually(lambda: server.answer()["cartridge"]["version"] == 2)
        time.sleep(0.2)
        over.set()
        seen = [pair for asker in askers for pair in asker.result()]
    assert {version for version, _ in seen} == {1, 2}
    assert all(text == texts[version] for version, text in seen)


def test_retired_and_erased(shop: Shop) -> None:
    shop.add("clinic", 2)
    shop.add("clinic", 3)
    with catalog_session(shop.settings) as session:
        retire(session, session.get_one(CartridgeRow, 2))
        record_tombstone(session, session.get_one(CartridgeRow, 3), [])
    with serving(shop) as server:
        assert server.error(410, model="clinic:2")["code"] == "cartridge_retired"
        assert server.error(410, model="clinic:3")["code"] == "cartridge_erased"


def test_another_base_model(shop: Shop) -> None:
    other = Shop(build_tiny_base("llama"), shop.folder / "other")
    other.settings = shop.settings
    other.add("law", 1, "champion")
    with serving(shop) as server:
        error = server.error(422, model="law")
        assert error["code"] == "wrong_base_model"
        assert "tiny-llama" in error["message"] and "tiny-qwen2" in error["message"]
        assert [m["id"] for m in server.client.get("/v1/models").json()["data"]] == ["tiny-qwen2", "clinic"]


def test_damaged_and_missing_files(shop: Shop) -> None:
    shop.add("law", 1, "champion")
    flip(shop, "clinic", 1)
    root = Path(shop.settings.artifact_root)
    with serving(shop) as server:
        assert server.error(500)["code"] == "cartridge_damaged"
        away = root.rename(root.with_name("away"))
        reply = server.ask(model="law")
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "artifact_unavailable")
        assert reply.headers["retry-after"] == "5"
        assert str(root) not in reply.text
        away.rename(root)
        assert text_of(server.answer(model="law")) == shop.expected("law").text


def test_a_fallback_is_asked_for_and_labelled(shop: Shop, tmp_path: Path) -> None:
    documents = tmp_path / "documents"
    documents.mkdir()
    (documents / "ward.md").write_text("The ward of Ada Lind is green.", encoding="utf-8")
    corpus = ingest(shop.settings, "clinic", [documents])
    flip(shop, "clinic", 1)
    in_context = prefix_token_ids(shop.base.tokenizer, corpus.load().text())
    bos = [shop.base.tokenizer.bos_token_id]
    with serving(shop) as server:
        assert server.error(500)["code"] == "cartridge_damaged"
        assert server.error(500, cartridge_fallback="refuse")["code"] == "cartridge_damaged"
        nothing = server.answer(cartridge_fallback="none")
        assert text_of(nothing) == shop.expected(None, front=bos).text
        assert nothing["cartridge"]["served"] == "none"
        assert nothing["cartridge"]["fallback_reason"] == "cartridge_damaged"
        assert nothing["usage"]["cartridge_tokens"] == 0
        # The registered Cartridge stands for another content, whose documents are not here.
        assert server.error(503, cartridge_fallback="icl")["code"] == "cartridge_not_loaded"
        whole = server.answer(model="clinic@champion", cartridge_fallback="none", stream=...)
        assert whole["cartridge"]["served"] == "none"
        assert server.error(404, model="nope", cartridge_fallback="none")["code"] == "model_not_found"
    unpromoted = ingest(shop.settings, "wards", [documents])
    assert unpromoted.digest == corpus.digest
    with serving(shop, fallback="icl") as server:
        reply = server.ask(model="wards")
        assert text_of(reply.json()) == shop.expected(None, front=in_context).text
        assert reply.json()["cartridge"] == {"corpus": "wards", "served": "icl", "fallback_reason": "not_promoted"}
        assert reply.headers["x-cartridge-served"] == "icl"
        assert reply.json()["usage"]["context_tokens"] == len(in_context)
        assert reply.json()["usage"]["prompt_tokens"] == len(shop.prompt())
        streamed = events(server.ask(model="wards", stream=True))
        assert all(event["cartridge"]["served"] == "icl" for event in streamed)
        assert server.error(404, model="wards", cartridge_fallback="refuse")["code"] == "not_promoted"
        assert (
            'cartridge_fallbacks_total{corpus="wards",served="icl",tenant="default"} 2.0'
            in server.client.get("/metrics").text
        )
        # Withdrawn documents stand in nobody's prompt.
        withdraw_content(unpromoted, "The corpus was removed.")
        refused = server.error(503, model="wards")
        assert refused["code"] == "cartridge_not_loaded" and "Ada" not in refused["message"]


def test_the_catalog_breaks_and_recovers(shop: Shop) -> None:
    shop.add("law", 1, "champion")
    file = shop.settings.home / "catalog.db"
    good = file.read_bytes()
    with serving(shop, stale_s=4) as server:
        right = shop.expected("clinic").text
        assert text_of(server.answer()) == right
        file.write_bytes(b"\xff" * len(good))
        time.sleep(0.3)
        assert text_of(server.answer()) == right
        reply = server.ask(model="law")
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "catalog_unavailable")
        assert reply.headers["retry-after"] == "1"
        time.sleep(4)
        assert server.error(503)["code"] == "catalog_unavailable"
        file.write_bytes(good)
        assert eventually(lambda: server.ask().status_code == 200)
        assert text_of(server.answer()) == right


def test_a_slow_load_is_a_503_that_says_when(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.add("law", 1, "champion")
    with serving(shop, load_wait_s=0.2) as server:
        server.answer()
        cache = server.gateway.engine.cache  # type: ignore[attr-defined]  # the local engine's
        load = cache._load
        monkeypatch.setattr(cache, "_load", lambda wanted: (time.sleep(0.6), load(wanted))[1])
        reply = server.ask(model="law")
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "cartridge_not_loaded")
        assert reply.headers["retry-after"] == "1"
        # Others are answered meanwhile, and the load goes on.
        assert text_of(server.answer()) == shop.expected("clinic").text
        assert eventually(lambda: server.ask(model="law").status_code == 200)


@pytest.mark.parametrize("stream", [True, False])
def test_a_caller_who_goes_away_frees_the_engine(shop: Shop, stream: bool) -> None:
    with serving(shop) as server, slow(shop, 0.03):
        body = {"model": "clinic", "messages": QUESTION, "max_tokens": 900, "temperature": 0, "stream": stream, "n": 2}
        patience = 30.0 if stream else 1.0
        request = server.client.build_request("POST", "/v1/chat/completions", json=body, timeout=patience)
        with httpx.Client() as client:
            if stream:
                reply = client.send(request, stream=True)
                next(reply.iter_lines())
                assert running(server) == 2
                reply.close()
            else:
                with pytest.raises(httpx.ReadTimeout):
                    client.send(request)
        assert eventually(lambda: running(server) == 0)


def test_the_engine_fails_in_the_middle_of_a_stream(shop: Shop) -> None:
    left = [6]

    def fail(*arguments: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise RuntimeError("device lost")

    with serving(shop) as server:
        right = text_of(server.answer())
        handle = shop.base.model.register_forward_pre_hook(fail)
        try:
            told = server.ask(stream=True).text
            assert broken_off(told)["code"] == "engine_error"
            assert "device lost" not in told
            assert server.error(503)["code"] == "engine_error"
        finally:
            handle.remove()
        assert text_of(server.answer()) == right


def test_too_many_requests_are_told_to_come_back(shop: Shop) -> None:
    with serving(shop, max_running=1, max_waiting=1) as server, slow(shop, 0.05), ThreadPoolExecutor(6) as pool:
        said = list(pool.map(lambda _: server.ask(max_tokens=10), range(6)))
    codes = sorted(reply.status_code for reply in said)
    assert codes[0] == 200 and codes[-1] == 503
    refused = next(reply for reply in said if reply.status_code == 503)
    assert refused.json()["error"]["code"] == "engine_overloaded"
    assert refused.headers["retry-after"] == "1"


def test_stopping_lets_answers_end_and_lets_no_new_ones_begin(shop: Shop) -> None:
    with serving(shop) as server, slow(shop, 0.05), ThreadPoolExecutor(1) as pool:
        asked = pool.submit(lambda: server.ask(max_tokens=30))
        assert eventually(lambda: running(server) == 1)
        server.server.handle_exit(signal.SIGTERM, None)
        ready = server.client.get("/readyz")
        assert (ready.status_code, ready.json()["reason"]) == (503, "shutting down")
        reply = server.ask()
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "shutting_down")
        assert text_of(asked.result().json()) == shop.expected("clinic", max_tokens=30).text
        server.thread.join(10)
        assert not server.thread.is_alive()
        # The signal is raised again once the server is gone; not in a thread.
        server.server._captured_signals.clear()


def test_an_error_nobody_thought_of_has_an_envelope_and_an_id(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    def surprise(*arguments: Any) -> None:
        raise ZeroDivisionError("secret detail")

    with serving(shop) as server:
        monkeypatch.setattr(server.gateway.resolver, "resolve", surprise)
        reply = server.client.post(
            "/v1/chat/completions",
            json={"model": "clinic", "messages": QUESTION},
            headers={"x-request-id": "mine-1"},
        )
        assert (reply.status_code, reply.json()["error"]["code"]) == (500, "internal_error")
        assert "mine-1" in reply.json()["error"]["message"] and "secret" not in reply.text
        assert reply.headers["x-request-id"] == "mine-1"
        monkeypatch.undo()
        server.answer()
