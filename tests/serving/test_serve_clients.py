"""`cartridge serve` in a process of its own, asked as users ask it: README's line, OpenAI's SDK; and a full disk."""

import json
import re
import resource
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai
import psutil
import pytest

from cartridge_core.models import load_base_model
from cartridge_core.stages.local_copies import cache_folder
from tests.serving.shop import QUESTION, Shop
from tests.serving.test_serve_command import ROOT, served
from tests.talkative import talkative

__all__ = ["talkative"]


@dataclass(frozen=True)
class Served:
    """A shop that another process serves."""

    shop: Shop
    url: str
    process: psutil.Process


@pytest.fixture(scope="module")
def other(talkative: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    shop = Shop(load_base_model(talkative, device="cpu"), tmp_path_factory.mktemp("shop"))
    shop.add("quickstart", 1, "champion")
    shop.add("law", 1, "champion")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CARTRIDGE_HOME", str(shop.settings.home))
        patch.setenv("CARTRIDGE_BASE_MODEL", str(talkative))
        patch.setenv("CARTRIDGE_DEVICE", "cpu")
        with served() as (process, url):
            yield Served(shop, url, psutil.Process(process.pid))


def test_the_line_of_the_readme(other: Served) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.search(r"^\$ (curl \S+/v1/chat/completions.*?)\n[$`]", readme, re.MULTILINE | re.DOTALL)
    assert found is not None
    line = found[1].replace("http://127.0.0.1:8000", other.url)
    assert line.count(other.url) == 1
    done = subprocess.run(
        ["bash", "-c", f"{line} --silent --show-error --max-time 60"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    reply = json.loads(done.stdout)
    assert "error" not in reply, reply
    assert reply["cartridge"]["digest"] == other.shop.cartridges["quickstart", 1].digest
    assert reply["usage"]["completion_tokens"] > 0


def test_the_sdk(other: Served) -> None:
    expected = other.shop.expected("quickstart")
    with openai.OpenAI(base_url=f"{other.url}/v1", api_key="any", max_retries=0) as client:
        assert [model.id for model in client.models.list()][1:] == ["law", "quickstart"]
        wanted = {"model": "quickstart", "messages": QUESTION, "max_tokens": 12, "temperature": 0}
        reply = client.chat.completions.create(**wanted)  # type: ignore[call-overload]
        assert reply.choices[0].message.content == expected.text
        stream = client.chat.completions.create(**wanted, stream=True)  # type: ignore[call-overload]
        said = "".join(choice.delta.content or "" for chunk in stream for choice in chunk.choices)
        assert said == expected.text


def test_a_full_disk(other: Served) -> None:
    """The process may write no file longer than a kilobyte: to it the disk is full when it fetches a Cartridge."""
    body = {"model": "law", "messages": QUESTION, "max_tokens": 12, "temperature": 0}
    limits = other.process.rlimit(psutil.RLIMIT_FSIZE)
    other.process.rlimit(psutil.RLIMIT_FSIZE, (1024, resource.RLIM_INFINITY))
    folder = cache_folder(other.shop.settings, other.shop.cartridges["law", 1].digest)
    try:
        reply = httpx.post(f"{other.url}/v1/chat/completions", json=body, timeout=60)
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "artifact_unavailable")
        assert reply.headers["retry-after"] == "5"
        assert str(folder.parent) not in reply.text
        # Nothing half fetched is left, and what needs no disk is answered.
        assert not folder.exists() and not list(folder.parent.glob(".*"))
        again = httpx.post(f"{other.url}/v1/chat/completions", json=body | {"model": "law:1"}, timeout=60)
        assert again.status_code == 503
        plain = body | {"model": other.shop.base.identity.id}
        assert httpx.post(f"{other.url}/v1/chat/completions", json=plain, timeout=60).status_code == 200
    finally:
        other.process.rlimit(psutil.RLIMIT_FSIZE, limits)
    reply = httpx.post(f"{other.url}/v1/chat/completions", json=body, timeout=60)
    assert reply.json()["choices"][0]["message"]["content"] == other.shop.expected("law").text
    assert folder.is_dir()
