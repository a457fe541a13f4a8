"""One vLLM server behind HTTP: whether it can be used, what it is doing, how it is asked."""

import json
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from types import MappingProxyType
from typing import Any

import aiohttp

from cartridge_core.serving.errors import EngineError
from cartridge_core.serving.vllm_refusal import refusal

_PROBE_S = 5.0
"""Seconds after which a server that does not say how it is counts as down."""

_NONE: Mapping[str, str] = MappingProxyType({})


class Unfit(Exception):
    """A server that cannot be used; the text says why, without its address."""


class Replica:
    """One server. Belongs to one event loop.

    Args:
        number: Its place in the configuration, from 1.
        url: Its address.
        timeout_s: Seconds without a word after which an answer is given up.
    """

    def __init__(self, number: int, url: str, timeout_s: float) -> None:
        self.number, self.url = number, url
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=_PROBE_S, sock_read=timeout_s)
        self.problem: str | None = "was not asked yet"
        """Why it is left out; None while it can be used."""
        self.served: set[str] = set()
        """Digests of Cartridges and compositions that its answers were seen to come through, since it was last left
        out."""
        self.pinned: set[str] = set()
        """Digests of what it was told to keep, since it was last left out."""
        self.perhaps_pinned: set[str] = set()
        """Digests of what it was told to keep before: it keeps them if it was away and not started again."""
        self.told_now: set[str] = set()
        """Digests of what an errand is about that it has not answered yet."""
        self.outstanding = 0
        """Answers that were asked of it and have not ended."""
        self.described: dict[str, Any] = {}
        """What its door said last (`GET /cartridges`)."""

    def leave_out(self, problem: str) -> None:
        """Ask nothing of it until it was seen to be well."""
        self.problem = problem
        self.served.clear()
        self.perhaps_pinned |= self.pinned
        self.pinned.clear()

    @contextmanager
    def busy(self, answers: int) -> Iterator[None]:
        """Count answers while they are written."""
        self.outstanding += answers
        try:
            yield
        finally:
            self.outstanding -= answers

    @asynccontextmanager
    async def post(
        self,
        session: aiohttp.ClientSession,
        path: str,
        body: Mapping[str, Any],
        headers: Mapping[str, str] = _NONE,
    ) -> AsyncIterator[aiohttp.StreamReader]:
        """Ask; what it says can be read until the block ends, and leaving the block early ends its work.

        Raises:
            ServingError: It refuses.
            EngineError: It is not there, or goes away meanwhile; it is left out then.
        """
        content = json.dumps(body, separators=(",", ":")).encode()
        try:
            async with session.post(
                self.url + path,
                data=content,
                headers={**headers, "content-type": "application/json"},
                timeout=self._timeout,
                allow_redirects=False,
            ) as response:
                if response.status != 200:
                    raise refusal(response.status, await response.read(), response.headers.get("retry-after"))
                yield response.content
        except (aiohttp.ClientError, TimeoutError) as error:
            self.leave_out("does not answer")
            raise EngineError("The engine went away.", "Ask again.", retry_after=2.0) from error

    async def look(self, session: aiohttp.ClientSession, model: str, window: int) -> None:
        """Find out whether it can be used.

        Args:
            session: Connections.
            model: Name of the base model that it has to serve.
            window: Tokens that a sequence of it has to hold.
        """
        try:
            await self._get(session, "/health")
            if self.problem is not None:
                _check_model(await self._get(session, "/v1/models"), model, window)
            described = await self._get(session, "/cartridges")
            if not isinstance(described, dict) or "cartridges" not in described:
                raise Unfit("runs without the Cartridge connector: start it with `cartridge engine`")
        except Unfit as error:
            self.leave_out(str(error))
        except (aiohttp.ClientError, TimeoutError):
            self.leave_out("does not answer")
        else:
            self.described, self.problem = described, None

    async def _get(self, session: aiohttp.ClientSession, path: str) -> Any:
        timeout = aiohttp.ClientTimeout(total=_PROBE_S)
        async with session.get(self.url + path, timeout=timeout, allow_redirects=False) as response:
            body = await response.read()
            if response.status == 404:
                return None
            if response.status != 200:
                raise Unfit(f"answered {response.status} when it was asked for {path}")
            try:
                return json.loads(body) if body else None
            except ValueError:
                raise Unfit(f"answered no JSON when it was asked for {path}") from None


def _check_model(models: Any, model: str, window: int) -> None:
    try:
        served = {entry["id"]: entry.get("max_model_len") for entry in models["data"]}
    except (KeyError, TypeError):
        raise Unfit("lists no models") from None
    if model not in served:
        raise Unfit(f"serves {', '.join(map(repr, served))} and not {model!r}")
    if served[model] is not None and served[model] < window:
        raise Unfit(
            f"takes {served[model]} tokens and this gateway promises {window}: start it with a larger --max-model-len, "
            f"or give the gateway window = {served[model]}"
        )
