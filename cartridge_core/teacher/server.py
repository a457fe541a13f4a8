"""One vLLM server that teaches: whether it serves the model, how it is asked, when it is left alone."""

import asyncio
import logging
import time
from dataclasses import dataclass, replace
from typing import Any

import httpx
import numpy as np

from cartridge_core.errors import TeacherError
from cartridge_core.inference.generate import Generation
from cartridge_core.model_description import ModelDescription
from cartridge_core.teacher.completion import Completion, read_generation

log = logging.getLogger(__name__)

_PROBE_S = 5.0
"""Seconds after which a server that does not say what it serves counts as down."""
_LONGEST_REST_S = 30.0
_SAME_LOGPROB = 0.1
"""Less than what a temperature changes, more than what a batch's company does in half precision."""


class ServerFailed(Exception):
    """A server did not answer; another one may. The text says why, without its address."""


@dataclass(frozen=True)
class Served:
    """The base model as a server has it."""

    name: str
    """How it is asked for."""
    window: int | None
    """Longest sequence in tokens; None where the server does not say."""


class TeacherServer:
    """One server. Belongs to one event loop.

    Args:
        url: Its address.
        model: What it has to serve.
        client: Connections, with the key in their headers.
        max_outstanding: Most turns asked of it at once.
    """

    def __init__(self, url: str, model: ModelDescription, client: httpx.AsyncClient, max_outstanding: int) -> None:
        self.url = url
        self._model, self._client = model, client
        self._places, self._lock = asyncio.Semaphore(max_outstanding), asyncio.Lock()
        self._served: Served | None = None
        self._failures = 0
        self._failed_at = -1.0
        self.rests_until = 0.0
        """Monotonic time before which others are asked instead."""

    async def answer(self, asked: Completion) -> Generation:
        """Have a turn written.

        Raises:
            ServerFailed: It does not answer; it is left alone for a moment.
            TeacherError: It serves another model, or cannot do what is asked.
        """
        async with self._places:
            began = time.monotonic()
            try:
                generation = await self._ask(asked)
            except ServerFailed as error:
                self._rest(began, error)
                raise
            self._failures = 0
            return generation

    async def check(self, asked: Completion, num_tokens: int) -> None:
        """Find out before a study whether it can do what the study will ask.

        Args:
            asked: One token, with as many log-probabilities as the study keeps.
            num_tokens: Length of a conversation.

        Raises:
            ServerFailed: It does not answer.
            TeacherError: It serves another model, or cannot do what is asked.
        """
        self._check_room(await self._admitted(), num_tokens)
        plain, heated = [await self._ask(replace(asked, temperature=temperature)) for temperature in (0.0, 2.0)]
        if asked.top_k and np.abs(plain.topk_logprobs - heated.topk_logprobs).max() > _SAME_LOGPROB:
            raise TeacherError(
                f"{self.url} reports log-probabilities that depend on the temperature.",
                "Start vLLM with `--logprobs-mode raw_logprobs`, which is the default.",
            )

    async def _ask(self, asked: Completion) -> Generation:
        served = await self._admitted()
        self._check_room(served, asked.num_tokens)
        reply = await self._said("POST", "/v1/completions", json={"model": served.name, **asked.body()})
        try:
            generation = read_generation(reply, asked, self._model.tokenizer)
        except TeacherError as error:
            raise TeacherError(f"{self.url}: {error.problem}", error.remedy) from error
        if generation is None:
            raise ServerFailed("gave a turn up")
        return generation

    def _check_room(self, served: Served, num_tokens: int) -> None:
        if served.window is not None and num_tokens > served.window:
            raise TeacherError(
                f"{self.url} takes {served.window} tokens, and a conversation needs {num_tokens}.",
                "Start vLLM with a larger --max-model-len, or study smaller chunks (chunk.max_tokens).",
            )

    async def _admitted(self) -> Served:
        async with self._lock:
            if self._served is None:
                models = await self._said("GET", "/v1/models", timeout=_PROBE_S)
                self._served = _served(models, self._model.identity.id, self.url)
            return self._served

    async def _said(self, method: str, path: str, **options: Any) -> Any:
        try:
            response = await self._client.request(method, self.url + path, **options)
        except httpx.RequestError as error:
            raise ServerFailed(f"does not answer ({type(error).__name__})") from error
        if response.status_code != 200:
            raise _refusal(self.url, response)
        try:
            return response.json()
        except ValueError as error:
            raise ServerFailed("answers no JSON") from error

    def _rest(self, began: float, error: ServerFailed) -> None:
        if began < self._failed_at:
            return  # of the many that one failure broke, the first counts
        self._failures += 1
        self._failed_at = time.monotonic()
        # At least as long as the failure took: what hangs is not waited for at every turn.
        rest = min(_LONGEST_REST_S, max(0.25 * 2**self._failures, self._failed_at - began))
        self.rests_until = self._failed_at + rest
        self._served = None  # what comes back may be another model
        log.warning("Teacher %s %s; it is left alone for %.1f s.", self.url, error, rest)


def _served(models: Any, wanted: str, url: str) -> Served:
    try:
        # Adapters have a parent.
        cards = [card for card in models["data"] if card.get("parent") is None]
        names = [str(card["id"]) for card in cards]
        for card in cards:
            root = str(card.get("root") or "")
            if wanted in (card["id"], root, root.rstrip("/").rpartition("/")[2]):
                return Served(card["id"], card.get("max_model_len"))
    except (KeyError, TypeError, AttributeError) as error:
        problem = f"{url} does not list its models as vLLM does."
        raise TeacherError(problem, "Give the address of a vLLM server.") from error
    raise TeacherError(
        f"{url} serves {', '.join(map(repr, names)) or 'no model'} and not {wanted!r}.",
        f"Start vLLM with the base model and `--served-model-name {wanted}`, or study with its model (`--model`).",
    )


def _refusal(url: str, response: httpx.Response) -> Exception:
    """A reply that is not 200: the server's trouble, which another one may not have, or ours."""
    status = response.status_code
    if status >= 500 or status in (408, 425, 429):
        return ServerFailed(f"answers {status}")
    if status in (401, 403):
        return TeacherError(f"{url} refuses the key (HTTP {status}).", "Set CARTRIDGE_TEACHER_KEY to its --api-key.")
    message = _message(response)
    if message is None:
        return TeacherError(
            f"{url} answers {response.request.url.path} with HTTP {status}.",
            "Give a vLLM server's root address, such as http://127.0.0.1:8001, without /v1.",
        )
    problem = f"{url} refuses what is asked: {message[:300].rstrip('.')}."
    if "logprobs" in problem:
        return TeacherError(problem, "Start vLLM with --max-logprobs of the study's top_k, or lower top_k.")
    return TeacherError(problem, "Look at how vLLM was started.")


def _message(response: httpx.Response) -> str | None:
    """What vLLM says; None where it is not vLLM that speaks."""
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return None
