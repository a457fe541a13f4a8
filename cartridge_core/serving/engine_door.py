"""In front of vLLM's own API: only signed Cartridges come in, and their files are on this machine before it is asked.

vLLM's scheduler can refuse a request only as an internal error, and a load that fails inside costs a place in
the batch. Here a refusal has a status, a code and a remedy. The connector verifies once more: it is the lock,
this the door.
"""

import asyncio
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cartridge_core.errors import PublishingError
from cartridge_core.serving.attachment import IN_FRONT, PARAMETER, Attachment, AttachmentError, attachment_key
from cartridge_core.serving.errors import BadRequestError, ForbiddenError, NotLoadedError, ServingError
from cartridge_core.serving.fetching import copies_here, erased_here, fetch_files
from cartridge_core.serving.request_log import refuse
from cartridge_core.settings import Settings
from cartridge_core.stages.local_copies import HeldCopy, LocalCopies, cache_folder

_FETCHES_AT_ONCE = 4
_WAIT_S = 10.0
"""How long a request waits for its Cartridge's files before it is told to come back; the fetch goes on."""
_ATTEMPTS = 3
"""How often files are fetched that others remove to make room."""


class EngineDoor:
    """ASGI middleware of vLLM's server (`--middleware`).

    Serves `GET /cartridges` (what is on this machine) and `POST /cartridges/load` (`{"attachment": signed}`: fetch the
    files and verify them).

    Args:
        app: vLLM's application.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app, self._settings = app, Settings()
        self._key, self._copies = attachment_key(self._settings), LocalCopies(self._settings)
        self._threads = ThreadPoolExecutor(_FETCHES_AT_ONCE, thread_name_prefix="cartridge-fetch")
        self._bytes: dict[tuple[str, str], int] = {}
        """Of those whose files were verified, by tenant and digest."""
        self._fetching: dict[str, asyncio.Task[None]] = {}
        self._counts = {"hits": 0, "fetches": 0, "failed_fetches": 0}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, or let it through."""
        if scope["type"] != "http" or scope["method"] != "POST":
            if scope["type"] == "http" and scope["path"] == "/cartridges":
                await JSONResponse(self._described())(scope, receive, send)
            else:
                await self._app(scope, receive, send)
            return
        body = await Request(scope, receive).body()
        leaving: Sequence[str] = ()
        # What stands in front of a request stays on this machine until it is answered: workers may read it late.
        with ExitStack() as until_answered:
            try:
                if scope["path"] == "/cartridges/load":
                    await self._admit(_field(body, "attachment"), until_answered)
                    await JSONResponse(self._described())(scope, receive, send)
                    return
                if PARAMETER.encode() in body:
                    parameters = _field(body, "kv_transfer_params")
                    signed = parameters.get(PARAMETER) if isinstance(parameters, dict) else None
                    leaving = await self._admit(signed, until_answered)
            except ServingError as error:
                await refuse(error)(scope, receive, send)
                return
            status = 0

            async def watched(message: Message) -> None:
                nonlocal status
                status = message.get("status", status)
                await send(message)

            await self._app(scope, _replayed(body, receive), watched)
        if status == 200:
            # Last: as long as files are there, or memory may hold it, `GET /cartridges` says so and it is told again.
            for digest in leaving:
                await self._erased(digest)

    def _described(self) -> dict[str, Any]:
        there = [
            {"digest": digest, "num_bytes": size, "pinned": self._copies.is_pinned(digest)}
            for (_, digest), size in self._bytes.items()
            if cache_folder(self._settings, digest).is_dir()
        ]
        held = copies_here(self._settings) | {digest for _, digest in self._bytes}
        return {"cartridges": there, "held": sorted(held), "fetching": len(self._fetching), **self._counts}

    async def _admit(self, signed: Any, until_answered: ExitStack) -> Sequence[str]:
        """Have what stands in front of a request on this machine, and held.

        Returns:
            Digests that are to be erased from it once vLLM has let them go.
        """
        try:
            attachment = Attachment.verified(signed, self._key)
        except AttachmentError as error:
            raise ForbiddenError(error.problem, error.remedy, code="attachment_refused") from error
        digests = [cartridge.digest for cartridge in attachment.cartridges]
        if attachment.residency == "erase":
            return digests
        for digest in digests if attachment.residency in IN_FRONT else ():
            try:
                until_answered.enter_context(await self._present(attachment.tenant, digest))
            except PublishingError as error:
                raise ForbiddenError(error.problem, error.remedy, code="attachment_refused") from error
        # Compositions are not pinned, and one that goes must not take its parts' pins with it.
        if attachment.residency != "cached" and len(digests) == 1:
            self._copies.pin(digests[0], attachment.residency == "pin")
        return ()

    async def _erased(self, digest: str) -> None:
        if await asyncio.to_thread(erased_here, self._copies, self._settings, digest):
            for known in [known for known in self._bytes if known[1] == digest]:
                del self._bytes[known]

    async def _present(self, tenant: str, digest: str) -> HeldCopy:
        """A verified copy, held."""
        for attempt in range(_ATTEMPTS):
            held = self._copies.hold(digest)
            if held is not None and (tenant, digest) in self._bytes:
                self._counts["hits"] += attempt == 0
                return held
            if held is not None:
                held.release()
            await self._fetch(tenant, digest)
        raise NotLoadedError(
            f"The files of Cartridge {digest[:12]} make room for others as soon as they are there.",
            "The operator has to raise CARTRIDGE_LOCAL_COPY_BYTES.",
            retry_after=_WAIT_S,
        )

    async def _fetch(self, tenant: str, digest: str) -> None:
        task = self._fetching.get(digest)
        if task is None:
            task = self._fetching[digest] = asyncio.create_task(self._fetched(tenant, digest))
            task.add_done_callback(lambda done: self._settle(digest, done))
        try:
            # Shielded: others wait for the same files, and the next request finds them.
            await asyncio.wait_for(asyncio.shield(task), _WAIT_S)
        except TimeoutError:
            raise NotLoadedError(
                f"The files of Cartridge {digest[:12]} are being fetched.", "Ask again shortly.", retry_after=_WAIT_S
            ) from None

    async def _fetched(self, tenant: str, digest: str) -> None:
        loop = asyncio.get_running_loop()
        size = await loop.run_in_executor(self._threads, fetch_files, self._copies, tenant, digest)
        self._bytes[tenant, digest] = size

    def _settle(self, digest: str, done: "asyncio.Task[None]") -> None:
        del self._fetching[digest]
        failed = done.cancelled() or done.exception() is not None
        self._counts["failed_fetches" if failed else "fetches"] += 1


def _field(body: bytes, name: str) -> Any:
    try:
        return json.loads(body)[name]
    except (ValueError, KeyError, TypeError):
        raise BadRequestError(f"The body is not a JSON object with {name!r}.", param=name) from None


def _replayed(body: bytes, receive: Receive) -> Receive:
    sent = False

    async def again() -> Message:
        nonlocal sent
        if sent:
            # What comes after the body is the caller going away.
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
