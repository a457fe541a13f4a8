"""Several Cartridges behind one request: off by default, and only where an evaluation of them passed."""

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cartridge_core.catalog import catalog_session, list_events, list_pins, record_composition
from cartridge_core.catalog.api_keys import create_api_key
from cartridge_core.compose import compose
from cartridge_core.inference.generate import GenerationConfig, generate
from cartridge_core.models import BaseModel
from cartridge_core.rendering import prefix_token_ids
from cartridge_core.serving.composition import Composition
from cartridge_core.serving.engine import GenerationRequest
from cartridge_core.serving.errors import NotLoadedError
from cartridge_core.serving.local_engine import LocalEngine, LocalEngineConfig
from cartridge_core.serving.prompt import PromptRenderer, ServedModel
from cartridge_core.serving.sampling import SamplingParams
from cartridge_core.settings import Settings
from cartridge_core.stages.ingest import ingest
from cartridge_core.stages.local_copies import cache_folder
from cartridge_core.stages.retire import retire
from tests.conftest import build_tiny_base, build_tokenizer
from tests.samples import cartridge_of
from tests.serving.shop import ICL_TOKENS, Running, Shop, events, serving, text_of
from tests.serving.test_admin import Operator
from tests.serving.test_fetching import stored


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    shop = Shop(build_tiny_base("qwen2"), tmp_path_factory.mktemp("shop"))
    for corpus in ("clinic", "law", "food"):
        shop.add(corpus, 1, "champion")
    shop.add("law", 2, "canary")
    graded(shop, ("clinic", 1), ("law", 1))
    graded(shop, ("clinic", 1), ("food", 1), passed=False)
    return shop


@pytest.fixture(scope="module")
def server(shop: Shop) -> Iterator[Running]:
    with serving(shop, composition=True) as running:
        yield running


def graded(shop: Shop, *parts: tuple[str, int], passed: bool = True, tenant: str = "default") -> None:
    """An evaluation of a composition, as `cartridge compose` leaves it."""
    with catalog_session(shop.settings) as session:
        record_composition(
            session,
            tenant,
            [shop.cartridges[part].digest for part in parts],
            digest="e" * 64,
            num_questions=40,
            score=0.95,
            icl_score=1.0,
            figures={},
            passed=passed,
            gate={},
            reason="accuracy 0.100 against 1.000.",
        )


def expected(shop: Shop, *parts: tuple[str, int]) -> Any:
    prefix = compose([shop.cartridges[part] for part in parts])
    return generate(shop.base, prefix, [shop.prompt()], GenerationConfig(max_new_tokens=12))[0]


def test_what_passed_answers_as_the_library_does(shop: Shop, server: Running) -> None:
    reply = server.ask(model="clinic+law")
    assert reply.status_code == 200, reply.text
    body, right = reply.json(), expected(shop, ("clinic", 1), ("law", 1))
    assert text_of(body) == right.text
    assert text_of(body) not in (text_of(server.answer(model=name)) for name in ("clinic", "law"))
    digests = [shop.cartridges[name, 1].digest for name in ("clinic", "law")]
    assert reply.headers["x-cartridge-digest"] == "+".join(digests)
    assert (reply.headers["x-cartridge-version"], reply.headers["x-cartridge-served"]) == ("1+1", "cartridge")
    told = body["cartridge"]
    assert (told["corpus"], told["served"]) == ("clinic+law", "cartridge")
    assert [part["digest"] for part in told["cartridges"]] == digests
    assert (told["cartridge_tokens"], told["saved_tokens"]) == (18, 2 * (ICL_TOKENS - 9))
    assert told["evaluation"] == {"num_questions": 40, "score": 0.95, "icl_score": 1.0}
    usage = body["usage"]
    assert (usage["prompt_tokens"], usage["cartridge_tokens"]) == (len(shop.prompt()), 18)


def test_every_way_to_name_it(shop: Shop, server: Running) -> None:
    right = expected(shop, ("clinic", 1), ("law", 1)).text
    fields = [{"id": name, "source": "catalog"} for name in ("clinic:1", "law@champion")]
    assert text_of(server.answer(model="clinic:1+law@champion")) == right
    assert text_of(server.answer(model=shop.base.identity.id, cartridges=fields)) == right
    stream = events(server.ask(model="clinic+law", stream=True))
    assert "".join(event["choices"][0]["delta"].get("content", "") for event in stream) == right
    assert 'corpus="clinic+law"' in server.client.get("/metrics").text


def test_what_is_not_known_to_work_is_refused(server: Running) -> None:
    for model in ("clinic+food", "food+clinic", "law+clinic", "clinic+law:2", "clinic+clinic", "clinic+law+food"):
        error = server.error(400, model=model)
        assert (error["code"], error["param"]) == ("composition_not_evaluated", "model")
    assert "was not evaluated" in server.error(400, model="law+clinic")["message"]
    assert "did not pass the gate: accuracy 0.100" in server.error(400, model="clinic+food")["message"]
    # Not even the caller's own wish for something in its place makes it an answer.
    assert server.error(400, model="law+clinic", cartridge_fallback="none")["code"] == "composition_not_evaluated"
    assert server.error(404, model="clinic+nope")["code"] == "model_not_found"
    assert "More than 8" in server.error(400, model="+".join(["clinic"] * 9))["message"]


def test_a_composition_is_a_model_where_it_may_be_asked(shop: Shop, server: Running) -> None:
    parts = [shop.cartridges[name, 1] for name in ("clinic", "law")]
    for name, shown in (("clinic+law", "clinic+law"), ("clinic:1+law@champion", "clinic:1+law")):
        reply = server.client.get(f"/v1/models/{name}")
        assert reply.status_code == 200, reply.text
        model = reply.json()
        assert (model["id"], model["object"], model["owned_by"]) == (shown, "model", "default")
        assert model["created"] > 1_700_000_000
        assert [one["digest"] for one in model["metadata"]["cartridges"]] == [part.digest for part in parts]
        assert model["metadata"]["cartridge_tokens"] == 18 and model["metadata"]["evaluation"]["score"] == 0.95
    for name, status, code in (
        ("law+clinic", 400, "composition_not_evaluated"),
        ("clinic+food", 400, "composition_not_evaluated"),
        ("clinic+nope", 404, "model_not_found"),
    ):
        reply = server.client.get(f"/v1/models/{name}")
        assert (reply.status_code, reply.json()["error"]["code"]) == (status, code)


def test_operators_load_and_unload_a_composition_and_cannot_pin_it(tmp_path: Path) -> None:
    shop = Shop(build_tiny_base("qwen2"), tmp_path)
    for name in ("clinic", "law"):
        shop.add(name, 1, "champion")
    graded(shop, ("clinic", 1), ("law", 1))
    with catalog_session(shop.settings) as session:
        _, key = create_api_key(session, "default", "ops", operator=True)
        _, narrow = create_api_key(session, "default", "some", operator=True, corpora=["clinic"])
    with serving(shop, composition=True) as server:
        operator = Operator(server, key)

        def held() -> list[str]:
            said = server.client.get("/admin/cartridges", headers=operator.headers).json()
            return [one["model"] for one in said["compositions"]]

        loaded = operator.post("cartridges/load", model="clinic+law")
        assert loaded["resident"] is True and len(loaded["cartridges"]) == 2
        assert held() == ["clinic:1+law:1"]
        assert text_of(server.answer(key=key, model="clinic+law")) == expected(shop, ("clinic", 1), ("law", 1)).text
        assert server.gateway.engine.cache_counts().loads == 1
        error = operator.post("cartridges/pin", 400, model="clinic+law")["error"]
        assert (error["code"], error["param"]) == ("composition_not_pinned", "model")
        refused = operator.post("cartridges/load", 400, model="law+clinic")["error"]
        assert refused["code"] == "composition_not_evaluated"
        assert Operator(server, narrow).post("cartridges/load", 404, model="clinic+law")["error"]["code"] == (
            "model_not_found"
        )
        assert operator.post("cartridges/unload", model="clinic+law")["resident"] is False
        assert held() == []
        assert operator.post("cartridges/unload", 404, model="clinic+law")["error"]["code"] == "model_not_found"
        with catalog_session(shop.settings, read_only=True) as session:
            done = [(str(one.action), one.subject.split("/")[0]) for one in list_events(session, "default")]
            assert [pair for pair in done if pair[0] in ("load", "unload")] == [
                (action, corpus) for action in ("unload", "load") for corpus in ("law", "clinic")
            ]
            assert list_pins(session, shop.base.identity) == []


def test_the_newest_evaluation_counts_without_a_restart(shop: Shop, server: Running) -> None:
    pair = ("food", 1), ("law", 1)
    assert server.error(400, model="food+law")["code"] == "composition_not_evaluated"
    for passed in (True, False):
        graded(shop, *pair, passed=passed)
        server.gateway.resolver.forget()
        assert server.ask(model="food+law").status_code == (200 if passed else 400)


def test_one_that_may_not_be_served_any_longer_can_be_unloaded(tmp_path: Path) -> None:
    shop = Shop(build_tiny_base("qwen2"), tmp_path)
    for corpus in ("clinic", "law"):
        shop.add(corpus, 1)
    graded(shop, ("clinic", 1), ("law", 1))
    with catalog_session(shop.settings) as session:
        _, key = create_api_key(session, "default", "ops", operator=True)
    with serving(shop, composition=True, fresh_s=0) as server:
        operator, name = Operator(server, key), "clinic:1+law:1"
        operator.post("cartridges/load", model=name)
        graded(shop, ("clinic", 1), ("law", 1), passed=False)
        retire(shop.settings, "law", "1")
        operator.post("cartridges/load", 410, model=name)
        assert operator.post("cartridges/unload", model=name)["resident"] is False
        assert operator.post("cartridges/unload", 404, model=name)["error"]["code"] == "model_not_found"


def test_another_tenants_evaluation_counts_for_nothing(shop: Shop, server: Running) -> None:
    graded(shop, ("law", 2), ("food", 1), tenant="other")
    assert server.error(400, model="law:2+food")["code"] == "composition_not_evaluated"


def test_off_unless_the_operator_switches_it_on(shop: Shop) -> None:
    with serving(shop) as server:
        for model in ("clinic+law", "clinic+food"):
            assert server.error(400, model=model)["code"] == "composition_disabled"
            shown = server.client.get(f"/v1/models/{model}")
            assert (shown.status_code, shown.json()["error"]["code"]) == (400, "composition_disabled")


def test_a_key_must_open_every_corpus(tmp_path: Path) -> None:
    shop = Shop(build_tiny_base("qwen2"), tmp_path)
    shop.add("clinic", 1, "champion")
    shop.add("law", 1, "champion")
    graded(shop, ("clinic", 1), ("law", 1))
    with catalog_session(shop.settings) as session:
        _, narrow = create_api_key(session, "default", "narrow", corpora=["clinic"])
        _, narrow_operator = create_api_key(session, "default", "some", corpora=["clinic"], operator=True)
        _, all_operator = create_api_key(session, "default", "all", operator=True)
        _, wide = create_api_key(session, "default", "wide", corpora=["clinic", "law"])
    with serving(shop, composition=True) as server:
        assert text_of(server.answer(key=wide, model="clinic+law")) == expected(shop, ("clinic", 1), ("law", 1)).text
        for token, held in ((all_operator, ["clinic:1+law:1"]), (narrow_operator, [])):
            listed = server.client.get("/admin/cartridges", headers={"authorization": f"Bearer {token}"}).json()
            assert [one["model"] for one in listed["compositions"]] == held
            assert not any(one["resident"] for one in listed["cartridges"])
        hidden = server.error(404, key=narrow, model="clinic+law")
        missing = server.error(404, key=narrow, model="clinic+nope")
        assert hidden["message"].replace("law", "nope") == missing["message"]
        assert hidden["code"] == missing["code"] == "model_not_found"


def test_a_part_that_is_gone_is_told_and_may_fall_back(shop: Shop) -> None:
    law = shop.cartridges["law", 1]
    with serving(shop, composition=True) as server:
        shutil.rmtree(cache_folder(shop.settings, law.digest), ignore_errors=True)
        folder = Path(shop.settings.artifact_root, "default", "cartridges", law.digest)
        folder.rename(folder.with_name("elsewhere"))
        try:
            assert server.error(503, model="clinic+law")["code"] == "artifact_unavailable"
            reply = server.answer(model="clinic+law", cartridge_fallback="none")
            assert (reply["cartridge"]["served"], reply["cartridge"]["corpus"]) == ("none", "clinic+law")
            assert reply["usage"]["cartridge_tokens"] == 0
        finally:
            folder.with_name("elsewhere").rename(folder)
        assert server.answer(model="clinic+law")["cartridge"]["served"] == "cartridge"


def test_all_corpora_can_stand_in_the_prompt_instead(shop: Shop, tmp_path: Path) -> None:
    for name, text in (("wards", "The ward of Ada Lind is green."), ("rooms", "The room of Tom Berg is seven.")):
        (tmp_path / f"{name}.md").write_text(text, encoding="utf-8")
    wards, rooms = (ingest(shop.settings, name, [tmp_path / f"{name}.md"]) for name in ("wards", "rooms"))
    tokenizer = build_tokenizer("ours")
    renderer = PromptRenderer(ServedModel(shop.base.identity, tokenizer, 1024, len(tokenizer)), shop.settings)
    named = [("wards", wards.digest), ("rooms", "")]
    both = f"{wards.load().text()}\n\n{rooms.load().text()}"
    assert asyncio.run(renderer.corpora("default", named)) == prefix_token_ids(tokenizer, both)
    assert asyncio.run(renderer.corpora("default", named[::-1])) != prefix_token_ids(tokenizer, both)
    with pytest.raises(NotLoadedError, match=r"wards\+nope"):
        asyncio.run(renderer.corpora("default", [*named[:1], ("nope", "")]))
    renderer.close()


def test_the_engine_keeps_compositions_within_its_bound(each_base: BaseModel, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home")
    made = [cartridge_of(each_base, list(range(start, start + 9))) for start in (30, 60)]
    first, second = (stored(settings, one, tmp_path / one.digest) for one in made)
    prompt = (70, 71, 72)
    right = generate(each_base, compose(made), [list(prompt)], GenerationConfig(max_new_tokens=8))[0]
    each = sum(2 * layer.num_kv_heads * layer.head_dim * 4 * 9 for layer in each_base.layer_specs)

    async def run() -> None:
        engine = LocalEngine(each_base, settings, LocalEngineConfig(cache_bytes=3 * each))
        await engine.start()

        async def said(*parts: Any) -> str:
            sampling = SamplingParams(max_tokens=8, temperature=0)
            request = GenerationRequest("r", "default", prompt, sampling, parts)
            return "".join([piece.text async for piece in engine.generate(request)])

        try:
            assert await said(first, second) == right.text
            assert await said(first, second) == right.text
            assert (engine.cache_counts().loads, engine.cache_counts().resident_bytes) == (1, 2 * each)
            await said(first)
            assert len(await engine.residents()) == 2
            await said(second)
            # The composition was used least recently and had to go.
            assert [one.cartridge.digest for one in await engine.residents()] == [first.digest, second.digest]
            await said(second, first)
            await engine.unload(second.digest)
            assert all(not isinstance(one.cartridge, Composition) for one in await engine.residents())
        finally:
            await engine.close()

    asyncio.run(run())
