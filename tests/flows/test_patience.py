"""A server that is away for a while ends no chain (found by `make chaos`)."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from flows import patience
from flows import train_cartridge as chain
from flows.patience import patiently


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "sleep", lambda seconds: None)


def status(code: int) -> httpx.HTTPStatusError:
    request = httpx.Request("POST", "http://127.0.0.1/api/task_runs/")
    return httpx.HTTPStatusError("said no", request=request, response=httpx.Response(code, request=request))


def failing(error: Exception, times: int) -> Callable[..., dict[str, Any]]:
    left = [error] * times

    def stage(*asked: Any, **named: Any) -> dict[str, Any]:
        if left:
            raise left.pop()
        return {"digest": "a" * 64}

    return stage


@pytest.mark.parametrize("error", [httpx.ConnectError("refused"), httpx.ReadTimeout("slow"), status(503)])
def test_an_absence_is_waited_for(error: Exception) -> None:
    assert patiently(failing(error, 3)) == {"digest": "a" * 64}


@pytest.mark.parametrize("error", [status(422), ValueError("a mistake")])
def test_a_refusal_is_not(error: Exception) -> None:
    with pytest.raises(type(error)):
        patiently(failing(error, 1))


def test_patience_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "PATIENCE", -1.0)
    with pytest.raises(httpx.ConnectError):
        patiently(failing(httpx.ConnectError("refused"), 1))


def test_every_stage_of_the_chain_waits_for_the_server(prefect_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    away = httpx.ConnectError("All connection attempts failed")
    for stage in (
        "ingest_corpus",
        "synthesize_conversations",
        "register_cartridge",
        "promote_cartridge",
        "_show_summary",
    ):
        monkeypatch.setattr(chain, stage, failing(away, 1))
    monkeypatch.setattr(chain, "GPU_STEPS", {name: failing(away, 1) for name in chain.GPU_STEPS})
    made = chain.train_cartridge("wards", ["documents"])
    assert {stage["digest"] for stage in made.values()} == {"a" * 64}
