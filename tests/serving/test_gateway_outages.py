"""Stores that go away under a listening gateway, and an alias that operators move while answers stream."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import openai
import psutil
import psycopg
import pytest

from cartridge_core.catalog import catalog_session
from cartridge_core.catalog.api_keys import create_api_key
from cartridge_core.catalog.migration import upgrade
from cartridge_core.catalog.session import open_engine
from cartridge_core.serving.config import GatewayConfig
from tests.catalog.conftest import Postgres, postgres
from tests.conftest import build_tiny_base
from tests.s3 import make_bucket, s3_server, s3_variables
from tests.samples import embedded
from tests.serving.shop import QUESTION, Running, Shop, eventually, graded, serving, slow, text_of
from tests.serving.test_admin import Operator

__all__ = ["postgres"]


@contextmanager
def streaming(server: Running, key: str = "any", askers: int = 4) -> Iterator[Callable[[], list[tuple[int, str]]]]:
    """Askers that stream one answer of `clinic` after another. What is called ends them and gives what they got.

    A refused or broken answer is raised there.
    """
    over = threading.Event()

    def ask_on() -> list[tuple[int, str]]:
        seen = []
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0, timeout=60) as client:
            while not over.is_set():
                version, text = 0, ""
                for chunk in client.chat.completions.create(
                    model="clinic", messages=QUESTION, max_tokens=12, temperature=0, stream=True
                ):
                    version = (chunk.model_extra or {})["cartridge"]["version"]
                    text += "".join(choice.delta.content or "" for choice in chunk.choices)
                seen.append((version, text))
        return seen

    with ThreadPoolExecutor(askers) as pool:
        tasks = [pool.submit(ask_on) for _ in range(askers)]

        def end() -> list[tuple[int, str]]:
            over.set()
            return [pair for task in tasks for pair in task.result()]

        try:
            yield end
        finally:
            over.set()


def test_the_artifact_store_goes_away_and_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ExitStack() as stack:
        with s3_server() as endpoint:
            for name, value in s3_variables(endpoint).items():
                monkeypatch.setenv(name, value)
            make_bucket("foundry")
            shop = Shop(build_tiny_base("qwen2"), tmp_path, artifact_root="s3://foundry/cartridges")
            shop.add("clinic", 1, "champion")
            shop.add("law", 1, "champion")
            right = shop.expected("clinic").text
            server = stack.enter_context(serving(shop, load_wait_s=60))
            assert text_of(server.answer()) == right
        with streaming(server, askers=2) as end:
            refused = server.ask(model="law")
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "artifact_unavailable")
            assert refused.headers["retry-after"] == "5"
            assert endpoint not in refused.text and "foundry" not in refused.text
            seen = end()
        # Who is in memory is served on.
        assert seen and set(seen) == {(1, right)}
        with s3_server(urlsplit(endpoint).port or 0):
            assert text_of(server.answer(model="law")) == shop.expected("law").text
        # Fetched files outlive the store as well.
        server.gateway.engine.cache.unload(shop.cartridges["law", 1].digest)  # type: ignore[attr-defined]
        assert text_of(server.answer(model="law")) == shop.expected("law").text


def test_operators_promote_while_answers_stream(tmp_path: Path) -> None:
    shop = Shop(build_tiny_base("qwen2"), tmp_path)
    shop.settings = embedded(tmp_path / "home", device="cpu")
    graded(shop, list(range(20, 29)))
    graded(shop, list(range(30, 39)))
    shop.point("clinic", 1)
    with catalog_session(shop.settings) as session:
        key = create_api_key(session, "default", "ops", operator=True)[1]
    texts = {version: shop.expected("clinic", version).text for version in (1, 2)}
    assert texts[1] != texts[2]
    # Slow enough for answers to be under way when the alias moves. The catalog is remembered for as long as by default.
    with serving(shop, fresh_s=2) as server, slow(shop, 0.02), streaming(server, key) as end:
        operator = Operator(server, key)
        assert eventually(lambda: bool(server.gateway.in_flight.count >= 4))
        moved = operator.post("promote", corpus="clinic", reference="2")
        at = time.monotonic()
        assert (moved["moved"], moved["version"], moved["gate"]["passed"]) == (True, 2, True)
        assert moved["projection_error"] is None
        # Through this gateway: at once.
        assert server.answer(key=key)["cartridge"]["version"] == 2
        time.sleep(0.5)
        # By another process: within fresh_s.
        shop.point("clinic", 1)
        while server.answer(key=key)["cartridge"]["version"] == 2:
            assert time.monotonic() - at < 30
        time.sleep(0.5)
        seen = end()
    assert {version for version, _ in seen} == {1, 2}
    assert all(text == texts[version] for version, text in seen)


def test_a_postgresql_catalog_hangs_and_goes_on(tmp_path: Path, postgres: Postgres) -> None:
    url = postgres.place()
    engine = open_engine(url)
    upgrade(engine)
    engine.dispose()
    shop = Shop(build_tiny_base("qwen2"), tmp_path, catalog_url=url)
    shop.add("clinic", 1, "champion")
    shop.add("law", 1, "champion")
    right = shop.expected("clinic").text
    with psycopg.connect(url, autocommit=True) as connection:
        row = connection.execute("select pid from pg_stat_activity where backend_type = 'checkpointer'").fetchone()
    assert row is not None
    server_process = psutil.Process(row[0]).parent()
    assert server_process is not None
    # A minute where nobody says; eight seconds here, counted from the last answer that the catalog gave.
    assert GatewayConfig().stale_s == 60
    with serving(shop, fresh_s=0.5, stale_s=8, catalog_timeout_s=1) as server:
        assert text_of(server.answer()) == right
        frozen = [server_process, *server_process.children(recursive=True)]
        began = time.monotonic()
        for process in frozen:
            process.suspend()
        try:
            time.sleep(0.6)
            assert text_of(server.answer()) == right, "remembered"
            unknown = server.ask(model="law")
            assert (unknown.status_code, unknown.json()["error"]["code"]) == (503, "catalog_unavailable")
            assert unknown.headers["retry-after"] == "1"
            time.sleep(max(0.0, began + 8.5 - time.monotonic()))
            assert server.error(503)["code"] == "catalog_unavailable"
        finally:
            for process in frozen:
                process.resume()
        assert eventually(lambda: server.ask().status_code == 200)
        assert text_of(server.answer(model="law")) == shop.expected("law").text


def test_a_postgresql_catalog_refuses_connections(tmp_path: Path, postgres: Postgres) -> None:
    url = postgres.place()
    engine = open_engine(url)
    upgrade(engine)
    engine.dispose()
    shop = Shop(build_tiny_base("qwen2"), tmp_path, catalog_url=url)
    shop.add("clinic", 1, "champion")
    right = shop.expected("clinic").text
    with serving(shop, fresh_s=0.5, stale_s=4) as server, psycopg.connect(url, autocommit=True) as connection:
        assert text_of(server.answer()) == right
        row = connection.execute("show unix_socket_directories").fetchone()
        assert row is not None
        (socket,) = (path for path in Path(row[0]).iterdir() if path.name.startswith(".s.PGSQL.") and path.is_socket())
        away = socket.rename(socket.with_name("away"))
        began = time.monotonic()
        try:
            connection.execute("select pg_terminate_backend(pid) from pg_stat_activity where pid <> pg_backend_pid()")
            time.sleep(0.6)
            assert text_of(server.answer()) == right
            time.sleep(max(0.0, began + 4.5 - time.monotonic()))
            assert server.error(503)["code"] == "catalog_unavailable"
        finally:
            away.rename(socket)
        assert eventually(lambda: server.ask().status_code == 200)
        assert text_of(server.answer()) == right
