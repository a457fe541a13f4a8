"""Operators over HTTP: memory, and aliases that are moved with the gate watching."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from cartridge_core.catalog import (
    alias_history,
    catalog_session,
    find_cartridge,
    list_pins,
    pinned_digests,
    record_pin,
    record_tombstone,
)
from cartridge_core.catalog.api_keys import create_api_key
from cartridge_core.catalog.cartridges import cartridge_row
from cartridge_core.publishing.artifact import cartridge_key
from cartridge_core.stages.local_copies import cache_folder
from cartridge_core.stages.retire import retire
from tests.conftest import build_tiny_base
from tests.samples import embedded
from tests.serving.shop import Running, Shop, eventually, graded, serving, text_of


class Operator:
    """Somebody with an operator's key."""

    def __init__(self, server: Running, token: str) -> None:
        self.server, self.headers = server, {"authorization": f"Bearer {token}"}

    def get(self) -> dict[str, dict[str, Any]]:
        reply = self.server.client.get("/admin/cartridges", headers=self.headers)
        assert reply.status_code == 200, reply.text
        return {one["model"]: one for one in reply.json()["cartridges"]}

    def post(self, path: str, status: int = 200, **body: Any) -> dict[str, Any]:
        reply = self.server.client.post(f"/admin/{path}", json=body, headers=self.headers)
        assert reply.status_code == status, reply.text
        found: dict[str, Any] = reply.json()
        return found


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    shop = Shop(build_tiny_base("qwen2"), tmp_path)
    shop.add("clinic", 1, "champion")
    shop.add("clinic", 2)
    shop.add("secret", 1, "champion", tenant="acme")
    return shop


def token(shop: Shop, **more: Any) -> str:
    with catalog_session(shop.settings) as session:
        return create_api_key(session, "default", "ops", **more)[1]


def test_only_operators(shop: Shop) -> None:
    with serving(shop) as server:
        # Without any key there are no operators either.
        assert server.client.get("/admin/cartridges").status_code == 403
        assert server.client.post("/admin/promote", json={"corpus": "clinic"}).status_code == 403
    plain = token(shop)
    with serving(shop) as server:
        assert server.client.get("/admin/cartridges").status_code == 401
        user = Operator(server, plain)
        for path in ("promote", "rollback"):
            assert user.post(path, 403, corpus="clinic")["error"]["code"] == "insufficient_permissions"
        for path in ("load", "pin", "unload"):
            assert user.post(f"cartridges/{path}", 403, model="clinic")["error"]["code"] == "insufficient_permissions"


def test_memory(shop: Shop) -> None:
    key = token(shop, operator=True)
    one = 9 * sum(2 * s.num_kv_heads * s.head_dim for s in shop.base.layer_specs) * 4
    with serving(shop, cache_bytes=one) as server:
        operator = Operator(server, key)
        assert set(operator.get()) == {"clinic:1", "clinic:2"}
        operator.post("cartridges/load", model="clinic:2")
        assert [(c["resident"], c["pinned"]) for c in operator.get().values()] == [(True, False), (False, False)]
        operator.post("cartridges/pin", model="clinic:2")
        # There is room for one, and that one is pinned.
        assert server.error(503, key=key, model="clinic:1")["code"] == "cartridge_not_loaded"
        operator.post("cartridges/pin", model="clinic:2", pinned=False)
        server.answer(key=key, model="clinic:1")
        assert [c["model"] for c in operator.get().values() if c["resident"]] == ["clinic:1"]
        operator.post("cartridges/unload", model="clinic")
        assert not any(c["resident"] for c in operator.get().values())
        assert operator.post("cartridges/unload", 404, model="clinic")["error"]["code"] == "model_not_found"
        assert operator.post("cartridges/load", 404, model="secret")["error"]["code"] == "model_not_found"
        assert operator.post("cartridges/load", 404, model="tiny-qwen2")["error"]["code"] == "model_not_found"


def test_pins_outlive_the_process(shop: Shop) -> None:
    key = token(shop, operator=True)
    with catalog_session(shop.settings) as session:
        acme = create_api_key(session, "acme", "ops", operator=True)[1]
    with serving(shop) as server:
        operator, other = Operator(server, key), Operator(server, acme)
        for model in ("clinic:2", "clinic:2", "clinic:1"):
            operator.post("cartridges/pin", model=model)
        operator.post("cartridges/pin", model="clinic:1", pinned=False)
        other.post("cartridges/pin", model="secret")
        assert operator.post("cartridges/pin", 404, model="secret")["error"]["code"] == "model_not_found"
    with serving(shop) as server:
        operator, other = Operator(server, key), Operator(server, acme)
        assert eventually(lambda: operator.get()["clinic:2"]["pinned"] and other.get()["secret:1"]["pinned"])
        assert operator.get()["clinic:1"]["resident"] is False
        # Unloaded means that nobody wants it kept.
        operator.post("cartridges/unload", model="clinic:2")
    with catalog_session(shop.settings) as session:
        assert [entry.corpus for entry in list_pins(session, shop.base.identity)] == ["secret"]
        assert list_pins(session, shop.base.identity.model_copy(update={"revision": "other"})) == []
        assert record_pin(session, "default", "clinic", "1") is True
        assert record_pin(session, "default", "clinic", "1") is False
    # One that can no longer be loaded does not keep the others away.
    shutil.rmtree(Path(shop.settings.artifact_root, cartridge_key("acme", shop.cartridges["secret", 1].digest)))
    shutil.rmtree(cache_folder(shop.settings, shop.cartridges["secret", 1].digest))
    with serving(shop) as server:
        operator, other = Operator(server, key), Operator(server, acme)
        assert eventually(lambda: bool(operator.get()["clinic:1"]["pinned"]))
        assert other.get()["secret:1"]["resident"] is False
        assert text_of(server.answer(key=key)) == shop.expected("clinic", 1).text


def test_what_may_not_be_served_any_longer_can_be_let_go(shop: Shop) -> None:
    key = token(shop, operator=True)
    with serving(shop, fresh_s=0) as server:
        operator = Operator(server, key)
        operator.post("cartridges/pin", model="clinic:2")
        retire(shop.settings, "clinic", "2")
        # As somebody left it who retired it before pins ended with that.
        with catalog_session(shop.settings) as session:
            record_pin(session, "default", "clinic", "2")
        for path in ("load", "pin"):
            refused = operator.post(f"cartridges/{path}", 410, model="clinic:2")
            assert refused["error"]["code"] == "cartridge_retired"
        assert operator.post("cartridges/pin", model="clinic:2", pinned=False)["pinned"] is False
        with catalog_session(shop.settings) as session:
            assert pinned_digests(session, "default") == set()
            row = cartridge_row(session, "default", find_cartridge(session, "default", "clinic", "2").cartridge_id)
            record_tombstone(session, row, [])
        assert operator.post("cartridges/unload", model="clinic:2")["resident"] is False
        assert operator.post("cartridges/unload", 404, model="clinic:2")["error"]["code"] == "model_not_found"


def test_the_list_has_pages(shop: Shop) -> None:
    for version in (3, 4):
        shop.add("clinic", version)
    shop.add("law", 1)
    key, narrow = token(shop, operator=True), token(shop, operator=True, corpora=["clinic"])
    with serving(shop) as server:

        def page(asked: str = "", key: str = key) -> list[dict[str, Any]]:
            reply = server.client.get(f"/admin/cartridges{asked}", headers={"authorization": f"Bearer {key}"})
            assert reply.status_code == 200, reply.text
            found: list[dict[str, Any]] = reply.json()["cartridges"]
            return found

        everything = [one["model"] for one in page()]
        assert everything == ["law:1", "clinic:4", "clinic:3", "clinic:2", "clinic:1"]
        seen = page("?limit=2")
        while found := page(f"?limit=2&before={seen[-1]['number']}"):
            assert len(found) <= 2
            seen += found
        assert [one["model"] for one in seen] == everything
        # What a key does not open takes no place of a page.
        assert [one["model"] for one in page("?limit=2", narrow)] == ["clinic:4", "clinic:3"]
        for wrong in ("limit=0", "limit=1001", "limit=x", "before=0", "before=99999999999"):
            reply = server.client.get(f"/admin/cartridges?{wrong}", headers={"authorization": f"Bearer {key}"})
            error = reply.json()["error"]
            assert (reply.status_code, error["code"], error["param"]) == (400, "invalid_value", wrong.split("=")[0])


def test_promote_and_roll_back(shop: Shop) -> None:
    key = token(shop, operator=True)
    with serving(shop, fresh_s=60) as server:
        operator = Operator(server, key)
        assert server.answer(key=key)["cartridge"]["version"] == 1
        # It was graded, but the report is not there to be judged.
        refused = operator.post("promote", 503, corpus="clinic", reference="2")
        assert refused["error"]["code"] == "artifact_unavailable"
        assert operator.post("promote", 404, corpus="clinic", reference="9")["error"]["code"] == "not_found"
        assert operator.post("promote", 400, corpus="clinic", alias="latest")["error"]["code"] == "invalid_value"
        assert operator.post("promote", 404, corpus="secret")["error"]["code"] == "not_found"
        shop.point("clinic", 2)
        assert server.answer(key=key)["cartridge"]["version"] == 1, "remembered for a minute"
        rolled = operator.post("rollback", corpus="clinic", reason="wrong answers")
        assert (rolled["moved"], rolled["version"]) == (True, 1)
        assert text_of(server.answer(key=key)) == shop.expected("clinic", 1).text
        assert operator.post("rollback", 404, corpus="clinic")["error"]["code"] == "not_found"
        with catalog_session(shop.settings, read_only=True) as session:
            last = alias_history(session, "default", "clinic")[-1]
        assert last.action == "rollback" and last.reason == "wrong answers"
        assert last.actor.startswith("key ")
    scoped = token(shop, operator=True, corpora=["law"])
    with serving(shop) as server:
        assert Operator(server, scoped).post("rollback", 404, corpus="clinic")["error"]["code"] == "model_not_found"
        assert Operator(server, scoped).get() == {}


def test_promotion_through_the_gate(tmp_path: Path) -> None:
    shop = Shop(build_tiny_base("qwen2"), tmp_path)
    shop.settings = embedded(tmp_path / "home", device="cpu")
    first, second = graded(shop, list(range(20, 29))), graded(shop, list(range(30, 39)))
    key = token(shop, operator=True)
    with serving(shop, fresh_s=60) as server:
        operator = Operator(server, key)
        assert server.error(404, key=key)["code"] == "not_promoted"
        moved = operator.post("promote", corpus="clinic", reference="1", reason="the first one")
        assert (moved["moved"], moved["version"], moved["digest"]) == (True, 1, first.digest)
        assert moved["gate"]["passed"] is True and moved["projection_error"] is None
        # It was loaded before the alias moved: nobody waits for it.
        assert operator.get()["clinic:1"]["resident"] is True
        assert text_of(server.answer(key=key)) == shop.expected("clinic", 1).text
        # Without a name the newest one, by which the other is relieved at once.
        moved = operator.post("promote", corpus="clinic")
        assert (moved["moved"], moved["version"], moved["digest"]) == (True, 2, second.digest)
        assert text_of(server.answer(key=key)) == shop.expected("clinic", 2).text
        again = operator.post("promote", corpus="clinic", reference=second.digest[:8])
        assert (again["moved"], again["version"]) == (False, 2)
        canary = operator.post("promote", corpus="clinic", reference="1", alias="canary")
        assert (canary["alias"], canary["version"]) == ("canary", 1)
        assert server.answer(key=key, model="clinic@canary")["cartridge"]["version"] == 1
        # Digits of other scripts are no version, and what no database keeps is no reason.
        for reference in ("²", "①", "१"):
            assert operator.post("promote", 404, corpus="clinic", reference=reference)["error"]["code"] == "not_found"
        for reason in ("a\0b", "x" * 2001):
            assert operator.post("rollback", 400, corpus="clinic", reason=reason)["error"]["param"] == "reason"
    with catalog_session(shop.settings, read_only=True) as session:
        history = alias_history(session, "default", "clinic")
    assert [move.action for move in history] == ["promote", "promote"]
    assert history[0].reason == "the first one" and all(move.actor.startswith("key ") for move in history)
