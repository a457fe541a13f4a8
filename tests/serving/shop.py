"""A gateway on a tiny model, really listening: catalog, store and engine are the real ones."""

import asyncio
import copy
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from cartridge_core.cartridge import Cartridge
from cartridge_core.catalog import (
    Whereabouts,
    catalog_session,
    record_base_model,
    record_cartridge,
    record_corpus,
    record_evaluation,
    record_registration,
    set_alias,
)
from cartridge_core.inference.generate import GenerationConfig, generate
from cartridge_core.models import BaseModel
from cartridge_core.publishing import Evidence, register_cartridge
from cartridge_core.publishing.artifact import CARTRIDGE_FILES, cartridge_key
from cartridge_core.registry import model_name
from cartridge_core.rendering import prefix_token_ids, render_turns
from cartridge_core.serving.application import create_app
from cartridge_core.serving.config import GatewayConfig
from cartridge_core.serving.engine import Engine
from cartridge_core.serving.gateway import Gateway
from cartridge_core.serving.local_engine import LocalEngine, LocalEngineConfig
from cartridge_core.serving.prompt import ServedModel, read_served_model
from cartridge_core.serving.server import DrainingServer
from cartridge_core.serving.vllm_engine import VllmConfig, VllmEngine
from cartridge_core.settings import Settings
from cartridge_core.storage import open_store, put_folder
from tests.samples import CORPUS, SOURCE, cartridge_of, grade

ICL_TOKENS = 1009
QUESTION = [{"role": "user", "content": "Which ward has Ada Lind?"}]


class Shop:
    """Stores with Cartridges of one tiny model."""

    def __init__(self, base: BaseModel, folder: Path, **settings: Any) -> None:
        self.base, self.folder = base, folder
        self.settings = Settings(home=folder / "home", device="cpu", **settings)
        self.cartridges: dict[tuple[str, int], Cartridge] = {}

    def add(
        self,
        corpus: str,
        version: int,
        alias: str | None = None,
        tenant: str = "default",
        start: int = 0,
        text: str | None = None,
    ) -> Cartridge:
        """Put a Cartridge on the shelf; each corpus and version has keys of its own, those of a text where one is
        given."""
        first = 20 + 10 * len(self.cartridges) + start
        tokens = list(range(first, first + 9)) if text is None else prefix_token_ids(self.base.tokenizer, text)
        cartridge = cartridge_of(self.base, tokens, tenant=tenant)
        key = cartridge_key(tenant, cartridge.digest)
        put_folder(
            open_store(self.settings.artifact_root),
            cartridge.save(self.folder / cartridge.digest),
            key,
            CARTRIDGE_FILES,
        )
        with catalog_session(self.settings) as session:
            source = record_corpus(session, tenant, corpus, "a" * 64)
            base = record_base_model(session, tenant, self.base.identity)
            row = record_cartridge(session, source, base, None, cartridge.manifest)
            name = model_name(tenant, corpus, self.base.identity.id)
            record_registration(session, row, Whereabouts(name, version, "m", "r", f"/{key}", key, 3000))
            record_evaluation(
                session,
                row,
                digest=f"{version}".zfill(64),
                benchmark="closed_answer",
                num_questions=240,
                score=0.98,
                icl_score=1.0,
                figures={"icl_tokens": ICL_TOKENS},
                report_key="none",
            )
            if alias:
                set_alias(session, tenant, corpus, alias, row.id)
        self.cartridges[corpus, version] = cartridge
        return cartridge

    def point(self, corpus: str, version: int, alias: str = "champion", tenant: str = "default") -> None:
        """Move an alias as promotion does."""
        from cartridge_core.catalog import find_cartridge

        with catalog_session(self.settings) as session:
            entry = find_cartridge(session, tenant, corpus, str(version))
            set_alias(session, tenant, corpus, alias, entry.cartridge_id)

    def prompt(self, messages: list[dict[str, str]] = QUESTION) -> list[int]:
        """The turns in tokens."""
        return render_turns(self.base.tokenizer, messages, add_generation_prompt=True).token_ids

    def expected(
        self,
        corpus: str | None,
        version: int = 1,
        *,
        max_tokens: int = 12,
        front: Sequence[int] = (),
        messages: list[dict[str, str]] = QUESTION,
    ) -> Any:
        """What the library itself answers to the question, greedily, behind a Cartridge or these tokens."""
        prefix = self.cartridges[corpus, version].prefix() if corpus else None
        prompt = [*front, *self.prompt(messages)]
        return generate(self.base, prefix, [prompt], GenerationConfig(max_new_tokens=max_tokens))[0]


def graded(shop: Shop, tokens: list[int]) -> Cartridge:
    """A Cartridge that was graded well and registered everywhere."""
    base = shop.base
    cartridge = cartridge_of(
        base, tokens, corpus_digest=CORPUS.digest, dataset_digest="f" * 64, training_config_digest="1" * 64
    )
    folder = cartridge.save(shop.folder / cartridge.digest)
    entry = register_cartridge(shop.settings, folder, SOURCE, Evidence(report=grade(cartridge.digest)))
    assert entry.version is not None
    shop.cartridges["clinic", entry.version] = cartridge
    return cartridge


class Running:
    """A gateway that listens, and a client."""

    def __init__(self, gateway: Gateway, server: DrainingServer, thread: threading.Thread) -> None:
        self.gateway, self.server, self.thread = gateway, server, thread
        self.url = f"http://127.0.0.1:{server.port}"
        self.client = httpx.Client(base_url=self.url, timeout=30)

    def ask(self, path: str = "/v1/chat/completions", key: str | None = None, **body: Any) -> httpx.Response:
        """Send a request: a greedy one of twelve tokens to `clinic`, unless it says otherwise."""
        defaults: dict[str, Any] = {"model": "clinic", "max_tokens": 12, "temperature": 0}
        if path.endswith("chat/completions"):
            defaults["messages"] = QUESTION
        headers = {"authorization": f"Bearer {key}"} if key else {}
        wanted = {name: value for name, value in (defaults | body).items() if value is not ...}
        return self.client.post(path, json=wanted, headers=headers)

    def answer(self, **body: Any) -> dict[str, Any]:
        """A reply that must come."""
        reply = self.ask(**body)
        assert reply.status_code == 200, reply.text
        found: dict[str, Any] = reply.json()
        return found

    def error(self, status: int, **body: Any) -> dict[str, Any]:
        """A refusal in OpenAI's envelope."""
        reply = self.ask(**body)
        assert reply.status_code == status, reply.text
        assert set(reply.json()) == {"error"}
        error: dict[str, Any] = reply.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return error


def text_of(reply: dict[str, Any]) -> str:
    found: str = reply["choices"][0]["message"]["content"]
    return found


def events(reply: httpx.Response) -> list[dict[str, Any]]:
    """Events of a stream, which must end as OpenAI's do."""
    lines = [line for line in reply.text.split("\n\n") if line]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def broken_off(text: str) -> dict[str, Any]:
    """The error that ends a stream in which nothing may look whole."""
    *chunks, last = [json.loads(line.removeprefix("data: ")) for line in text.split("\n\n") if line]
    assert "[DONE]" not in text
    assert all(choice["finish_reason"] is None for chunk in chunks for choice in chunk["choices"])
    error: dict[str, Any] = last["error"]
    return error


def _local(shop: Shop, config: GatewayConfig) -> tuple[ServedModel, Engine]:
    base = shop.base
    bounds = LocalEngineConfig(config.cache_bytes, config.max_running, config.max_waiting, config.load_wait_s)
    # A tokenizer of the gateway's own, as `cartridge serve` has it.
    tokenizer = copy.deepcopy(base.tokenizer)
    model = ServedModel(base.identity, tokenizer, base.max_positions, len(tokenizer))
    return model, LocalEngine(base, shop.settings, bounds)


def _vllm(shop: Shop, config: GatewayConfig) -> tuple[ServedModel, Engine]:
    model = read_served_model(shop.settings.base_model, config.window)
    servers = VllmConfig(config.vllm_urls, config.max_outstanding, config.engine_timeout_s)
    return model, VllmEngine(model.identity.id, model.max_positions, shop.settings, servers)


@contextmanager
def serving(shop: Shop, **config: Any) -> Iterator[Running]:
    """A gateway of a shop, listening on a free port."""
    wanted = GatewayConfig(**({"port": 0, "fresh_s": 0.2, "drain_s": 10} | config))
    model, engine = _vllm(shop, wanted) if wanted.vllm_urls else _local(shop, wanted)
    gateway = Gateway(shop.settings, wanted, model, engine)
    server = DrainingServer(create_app(gateway), gateway)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()), daemon=True)
    thread.start()
    for _ in range(1000):
        if server.started or not thread.is_alive():
            break
        threading.Event().wait(0.01)
    assert server.started
    running = Running(gateway, server, thread)
    try:
        yield running
    finally:
        running.client.close()
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


@contextmanager
def slow(shop: Shop, seconds: float) -> Iterator[None]:
    """Each forward pass takes so long."""
    handle = shop.base.model.register_forward_pre_hook(lambda *arguments: time.sleep(seconds))
    try:
        yield
    finally:
        handle.remove()


def eventually(true: Callable[[], bool]) -> bool:
    """Whether it becomes true within some seconds."""
    for _ in range(300):
        if true():
            return True
        time.sleep(0.01)
    return False


def running(server: Running) -> int:
    """Answers that the engine has."""
    ready = server.client.get("/readyz").json()
    return int(ready["running"]) + int(ready["waiting"])
