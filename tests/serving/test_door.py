"""Who gets in, and what that one can see."""

import time
from pathlib import Path
from typing import Any

import pytest

from cartridge_core.catalog import catalog_session
from cartridge_core.catalog.api_keys import ApiKey, create_api_key, revoke_api_key
from cartridge_core.errors import SettingsError
from cartridge_core.serving.door import RateLimits, check_may_listen, is_loopback
from cartridge_core.serving.errors import RateLimitedError
from tests.conftest import build_tiny_base
from tests.serving.shop import QUESTION, Shop, serving, text_of


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    shop = Shop(build_tiny_base("qwen2"), tmp_path)
    shop.add("clinic", 1, "champion")
    shop.add("law", 1, "champion")
    return shop


def key(shop: Shop, name: str = "app", tenant: str = "default", **more: Any) -> tuple[ApiKey, str]:
    with catalog_session(shop.settings) as session:
        return create_api_key(session, tenant, name, **more)


def test_from_the_first_key_on_every_request_needs_one(shop: Shop) -> None:
    with serving(shop) as server:
        right = text_of(server.answer())
        made, token = key(shop)
        time.sleep(0.3)
        assert server.error(401)["code"] == "invalid_api_key"
        assert server.error(401, key="sk-wrong")["code"] == "invalid_api_key"
        assert server.error(401, key=token[:-1] + ("A" if token[-1] != "A" else "B"))["code"] == "invalid_api_key"
        assert server.client.get("/v1/models").status_code == 401
        assert text_of(server.answer(key=token)) == right
        assert server.client.get("/healthz").status_code == server.client.get("/readyz").status_code == 200
        with catalog_session(shop.settings) as session:
            revoke_api_key(session, "default", made.key_id)
        time.sleep(0.3)
        assert server.error(401, key=token)["code"] == "invalid_api_key"
        # Revoking the last one does not open the door again.
        assert server.error(401)["code"] == "invalid_api_key"


def test_a_key_opens_its_corpora_only_and_does_not_tell_of_others(shop: Shop) -> None:
    _, token = key(shop, corpora=["clinic"])
    headers = {"authorization": f"Bearer {token}"}
    with serving(shop) as server:
        server.answer(key=token)
        hidden, missing = server.error(404, key=token, model="law"), server.error(404, key=token, model="nope")
        assert hidden["message"].replace("law", "nope") == missing["message"]
        assert {k: v for k, v in hidden.items() if k != "message"} == {
            k: v for k, v in missing.items() if k != "message"
        }
        named = {"model": shop.base.identity.id, "cartridges": [{"id": "law", "source": "catalog"}]}
        assert server.error(404, key=token, **named)["code"] == "model_not_found"
        assert server.error(404, key=token, model="law", cartridge_fallback="icl")["code"] == "model_not_found"
        listed = server.client.get("/v1/models", headers=headers).json()["data"]
        assert [model["id"] for model in listed] == ["tiny-qwen2", "clinic"]
        assert server.client.get("/v1/models/law", headers=headers).status_code == 404


def test_tenants_do_not_see_each_other(shop: Shop) -> None:
    theirs = shop.add("clinic", 1, "champion", tenant="acme", start=3)
    _, ours_token = key(shop)
    _, acme_token = key(shop, tenant="acme")
    with serving(shop) as server:
        ours, acme = server.answer(key=ours_token), server.answer(key=acme_token)
        assert acme["cartridge"]["digest"] == theirs.digest != ours["cartridge"]["digest"]
        assert text_of(ours) != text_of(acme)
        assert server.error(404, key=acme_token, model="law")["code"] == "model_not_found"


def test_metrics_are_for_the_gateways_own_operators(shop: Shop) -> None:
    tokens = [key(shop)[1], key(shop, tenant="acme", operator=True)[1], key(shop, operator=True)[1]]
    with serving(shop) as server:
        codes = [server.client.get("/metrics", headers={"authorization": f"Bearer {t}"}).status_code for t in tokens]
        assert codes == [403, 403, 200]
        assert server.client.get("/metrics").status_code == 401


def test_a_rate_limit_says_when(shop: Shop) -> None:
    _, token = key(shop, requests_per_minute=3)
    with serving(shop) as server:
        said = [server.ask(key=token, max_tokens=1) for _ in range(4)]
        assert [reply.status_code for reply in said] == [200, 200, 200, 429]
        assert said[-1].json()["error"]["type"] == "rate_limit_error"
        assert 15 <= int(said[-1].headers["retry-after"]) <= 20


def test_a_bucket_fills_evenly() -> None:
    now = [0.0]
    limits = RateLimits(lambda: now[0])
    limited = ApiKey.model_construct(key_id="a", requests_per_minute=2)
    other = ApiKey.model_construct(key_id="b", requests_per_minute=1)
    limits.take(limited)
    limits.take(limited)
    with pytest.raises(RateLimitedError) as refusal:
        limits.take(limited)
    assert refusal.value.retry_after == pytest.approx(30)
    limits.take(other)
    now[0] = 30.1
    limits.take(limited)
    with pytest.raises(RateLimitedError):
        limits.take(limited)
    now[0] = 1000
    limits.take(limited)
    limits.take(limited)
    with pytest.raises(RateLimitedError):
        limits.take(limited)


def test_without_keys_only_this_machine_is_answered(shop: Shop) -> None:
    with serving(shop) as server:
        body = {"model": "clinic", "messages": QUESTION, "max_tokens": 2}
        for host, status in [
            ("evil.example", 403),
            ("evil.example:80", 403),
            ("localhost:1", 200),
            ("[::1]", 200),
            ("", 403),
        ]:
            reply = server.client.post("/v1/chat/completions", json=body, headers={"host": host})
            assert reply.status_code == status, host
        _, token = key(shop)
        time.sleep(0.3)
        headers = {"host": "gateway.example", "authorization": f"Bearer {token}"}
        assert server.client.post("/v1/chat/completions", json=body, headers=headers).status_code == 200


def test_where_a_gateway_may_listen(shop: Shop) -> None:
    for host in ("127.0.0.1", "localhost", "::1", "127.8.8.8"):
        assert is_loopback(host)
        check_may_listen(shop.settings, host)
    for host in ("0.0.0.0", "::", "10.0.0.1", "gateway.example", ""):
        assert not is_loopback(host)
        with pytest.raises(SettingsError, match=r"no API keys\. Make one"):
            check_may_listen(shop.settings, host)
    made, _ = key(shop)
    check_may_listen(shop.settings, "0.0.0.0")
    with catalog_session(shop.settings) as session:
        revoke_api_key(session, "default", made.key_id)
    with pytest.raises(SettingsError):
        check_may_listen(shop.settings, "0.0.0.0")
