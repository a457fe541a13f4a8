"""The page is one file that asks nobody but its own gateway, and asks it for what it really answers."""

import re
from collections.abc import Iterator

import pytest

from tests.conftest import build_tiny_base
from tests.serving.shop import Running, Shop, serving


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    shop = Shop(build_tiny_base("qwen2"), tmp_path_factory.mktemp("shop"))
    shop.add("clinic", 1, "champion")
    with serving(shop) as running:
        yield running


def test_it_is_served_with_a_policy_that_lets_nothing_else_in(server: Running) -> None:
    reply = server.client.get("/")
    assert reply.status_code == 200
    assert reply.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in reply.headers["content-security-policy"]
    assert not re.findall(r"https?://|src=|@import|innerHTML", reply.text)


def test_it_names_fields_that_are_there(server: Running) -> None:
    page = server.client.get("/").text
    reply = server.answer()
    for holder, described in (("about", reply["cartridge"]), ("graded", reply["cartridge"]["evaluation"])):
        named = set(re.findall(rf"\b{holder}\.(\w+)", page))
        assert named and named <= set(described), named - set(described)
    assert set(re.findall(r"usage\.(\w+)", page)) <= set(reply["usage"])
    assert set(re.findall(r'fetch\("(/[^"]+)"', page)) == {"/v1/models", "/v1/chat/completions"}
    ids = set(re.findall(r'id="(\w+)"', page))
    assert set(re.findall(r'at\("(\w+)"\)', page)) <= ids
