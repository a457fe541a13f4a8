"""`cartridge serve` on the embedded default: from documents to an answer over HTTP, in a process of its own."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from cartridge_core.catalog import catalog_session
from cartridge_core.catalog.api_keys import create_api_key
from cartridge_core.publishing import promote
from cartridge_core.stages.ask import ask
from cartridge_core.stages.register import register
from tests.cli.test_commands import refusal, run
from tests.stages.test_chain import OPEN, graded_chain
from tests.talkative import Workplace, talkative, workplace

__all__ = ["talkative", "workplace"]

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-c", "from cartridge_core.cli.main import main; main()", "serve"]


@contextmanager
def served(*options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The running command and its address."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [*COMMAND, "--port", "0", "--json", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        assert process.stdout is not None and process.stderr is not None
        line = process.stdout.readline()
        assert line, process.stderr.read()
        yield process, json.loads(line)["url"]
    finally:
        process.kill()
        process.communicate()


def test_from_documents_to_an_answer_over_http(workplace: Workplace) -> None:
    settings = workplace.settings
    corpus, _, cartridge, graded = graded_chain(workplace)
    register(settings, corpus, cartridge, graded)
    promote(settings, "wards", gate=OPEN, force=True)
    question = "Which ward has patient 3?"
    expected = ask(settings, "wards", question, max_new_tokens=8)
    with served() as (process, url):
        assert url.startswith("http://127.0.0.1:")
        body = {
            "model": "wards",
            "messages": [{"role": "user", "content": question}],
            "temperature": 0,
            "max_tokens": 8,
        }
        reply = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60).json()
        assert reply["choices"][0]["message"]["content"].strip() == expected.text
        assert reply["cartridge"]["digest"] == expected.cartridge == cartridge.digest
        evaluation = reply["cartridge"]["evaluation"]
        assert evaluation["num_questions"] == 6 and evaluation["icl_tokens"] > 24
        assert reply["cartridge"]["saved_tokens"] == evaluation["icl_tokens"] - 24
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=20)
    lines = [json.loads(line) for line in log.splitlines()]
    (request,) = [line for line in lines if line["event"] == "request"]
    assert (request["corpus"], request["status"], request["version"], request["served"]) == (
        "wards",
        200,
        "1",
        "cartridge",
    )
    assert request["completion_tokens"] == reply["usage"]["completion_tokens"]
    assert request["request_id"] in reply["id"]
    # In either order: the reply can be here, and the signal be sent, before the request's line is written.
    events = sorted(line["event"] for line in lines if line["logger"] == "cartridge.gateway")
    assert events == ["draining", "request"]


def test_it_listens_elsewhere_only_with_keys(workplace: Workplace) -> None:
    assert "there are no API keys" in refusal("serve", "--host", "0.0.0.0")
    with catalog_session(workplace.settings) as session:
        _, token = create_api_key(session, "default", "app")
    with served("--host", "0.0.0.0") as (_, url):
        address = url.replace("0.0.0.0", "127.0.0.1")
        assert httpx.get(f"{address}/v1/models").status_code == 401
        assert httpx.get(f"{address}/v1/models", headers={"authorization": f"Bearer {token}"}).status_code == 200
        assert "cannot listen on 127.0.0.1" in refusal("serve", "--port", url.rsplit(":", 1)[1])


def test_a_wrong_configuration_is_refused(workplace: Workplace, tmp_path: Path) -> None:
    file = tmp_path / "serve.toml"
    for text, word in [("prot = 1", "prot"), ("cache_bytes = -1", "cache_bytes"), ('fallback = "guess"', "fallback")]:
        file.write_text(text, encoding="utf-8")
        assert word in refusal("serve", "--config", file)
    assert run("serve", "--fallback", "guess").exit_code == 2
