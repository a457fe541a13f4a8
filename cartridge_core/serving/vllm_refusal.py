"""What vLLM and the door in front of it refuse, as the gateway's own errors."""

import json
from collections.abc import Mapping
from typing import Any

from cartridge_core.serving.errors import (
    ArtifactUnavailableError,
    BadRequestError,
    ContextLengthError,
    DamagedCartridgeError,
    EngineError,
    NotLoadedError,
    OverloadedError,
    ServingError,
)
from cartridge_core.serving.openai_types import ENGINE_FIELDS

_OF_THE_DOOR: dict[str, type[ServingError]] = {
    kind.code: kind for kind in (NotLoadedError, ArtifactUnavailableError, DamagedCartridgeError)
}
_RETRY_S = 2.0


def refusal(status: int, body: bytes, retry_after: str | None) -> ServingError:
    """A reply that is not 200.

    Args:
        status: HTTP status.
        body: What it says.
        retry_after: Its header, in seconds.
    """
    try:
        said = json.loads(body)["error"]
        problem, param, code = str(said["message"]), said.get("param"), said.get("code")
    except (ValueError, KeyError, TypeError):
        problem, param, code = f"it answered {status}", None, None
    seconds = float(retry_after) if retry_after and retry_after.isdigit() else None
    if code in _OF_THE_DOOR:
        return _OF_THE_DOOR[code](problem, retry_after=seconds)
    if status in (400, 422):
        return _bad_request(problem, param)
    if status in (429, 503):
        return OverloadedError("The engine takes no more requests now.", "Ask again.", retry_after=seconds or _RETRY_S)
    # What is wrong inside is for the log.
    error = EngineError("The engine failed.", "Ask again.", retry_after=seconds or _RETRY_S)
    error.__cause__ = RuntimeError(f"HTTP {status}: {problem}")
    return error


def refusal_in(reply: Any) -> ServingError | None:
    """The error that stands in the place of an answer, if one does."""
    said = reply.get("error") if isinstance(reply, Mapping) else None
    if said is None:
        return None
    status = said.get("code")
    return refusal(status if isinstance(status, int) else 500, json.dumps(reply).encode(), None)


def _bad_request(problem: str, param: Any) -> ServingError:
    if "context length" in problem:
        return ContextLengthError(problem)
    return BadRequestError(problem, param=param if param in ENGINE_FIELDS else None)
