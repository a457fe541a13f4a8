"""`cartridge serve --vllm`: a gateway process in which torch cannot be imported."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.cli.test_commands import refusal
from tests.serving.shop import QUESTION, Shop
from tests.serving.vllm.conftest import KEY, Shelf
from tests.vllm_server import VllmServer

ROOT = Path(__file__).resolve().parents[3]
COMMAND = "import sys; sys.modules['torch'] = None; from cartridge_core.cli.main import main; main()"


def test_a_gateway_without_torch_answers_through_vllm(shelf: Shelf, vllm: VllmServer, tmp_path: Path) -> None:
    shop = Shop(
        shelf.base,
        tmp_path,
        attachment_key=KEY,
        base_model="reference",
        artifact_root=shelf.settings.artifact_root,
    )
    shop.add("clinic", 1, "champion", start=400)
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "CARTRIDGE_HOME": str(shop.settings.home),
        "CARTRIDGE_ARTIFACT_ROOT": shop.settings.artifact_root,
        "CARTRIDGE_ATTACHMENT_KEY": KEY,
    }
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, "serve", "--port", "0", "--json", "--vllm", vllm.url],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        assert process.stdout is not None and process.stderr is not None
        line = process.stdout.readline()
        assert line, process.stderr.read()
        body = {"model": "clinic", "messages": QUESTION, "temperature": 0, "max_tokens": 12}
        reply = httpx.post(f"{json.loads(line)['url']}/v1/chat/completions", json=body, timeout=60).json()
        assert reply["choices"][0]["message"]["content"].strip() == shop.expected("clinic").text
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=20)
    finally:
        process.kill()
        process.communicate()
    # Whatever is logged is JSON.
    said = [json.loads(line) for line in log.splitlines()]
    assert [line["event"] for line in said if line["event"] == "request"]


def test_what_is_missing_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CARTRIDGE_HOME", str(tmp_path))
    assert "CARTRIDGE_ATTACHMENT_KEY" in refusal("serve", "--port", "0", "--vllm", "http://127.0.0.1:8001")
    assert "http://engine:8001" in refusal("serve", "--vllm", "engine:8001")
    assert "vllm_urls" in refusal("serve", "--vllm", "http://user:secret@engine:8001")
