"""Which of vLLM's requests have Cartridges in front, what of them is missing, and what its workers have to do about it.

The scheduler's half of the connector; it knows vLLM's requests by their attributes and imports nothing of vLLM's.
"""

import logging
import secrets
from dataclasses import dataclass, field
from typing import Any

from cartridge_core.serving.attachment import IN_FRONT, PARAMETER, Attachment, AttachmentError
from cartridge_core.serving.residency import Front, Residency


@dataclass(frozen=True)
class Write:
    """Positions `[start, end)` of a request that a front's keys and values go to; without a front it has to fail."""

    request_id: str
    tenant: str
    front: Front
    start: int
    end: int
    block_ids: tuple[list[int], ...]
    """The request's blocks, one list a KV cache group."""
    loaded: bool
    """Whether the front is in the workers' memory already."""


@dataclass
class Orders:
    """What the workers have to do in one step."""

    writes: list[Write] = field(default_factory=list)
    drop: list[Front] = field(default_factory=list)
    """Fronts to let go, after the loaded ones were written and before others are loaded."""
    idle: bool = False
    """Whether the step computes nothing."""


class AttachedRequests:
    """Which request has what in front, and what of it is missing.

    Args:
        key: Attachments are signed with it.
        bytes_per_token: Of a front in a worker's memory.
        residency: What the workers hold.
        log: Where refusals are told; vLLM's own.
    """

    def __init__(
        self, key: bytes, bytes_per_token: int, residency: Residency, log: logging.Logger | None = None
    ) -> None:
        self._key, self._bytes_per_token, self._residency = key, bytes_per_token, residency
        self._log = log or logging.getLogger(__name__)
        self._attached: dict[str, Attachment | None] = {}
        """Of each live request that came with a Cartridge; None for one that must not have it."""
        self._loading: dict[str, Front] = {}
        """Outlives an aborted request, whose blocks stay until its load has ended."""
        self._orders = Orders()

    def admit(self, request: Any) -> None:
        """Read what came with a request and set its salt; an error here would end the engine, so none is raised."""
        signed = (request.kv_transfer_params or {}).get(PARAMETER)
        if signed is None:
            return
        try:
            attachment = Attachment.verified(signed, self._key)
            stands = attachment.residency in IN_FRONT
            if stands and request.num_prompt_tokens <= attachment.num_tokens:
                raise AttachmentError(
                    f"A prompt of {request.num_prompt_tokens} tokens with a Cartridge of {attachment.num_tokens}."
                )
            if stands and request.skip_reading_prefix_cache:
                # vLLM would run the placeholders as text and keep that under the Cartridge's salt.
                raise AttachmentError("Log-probs of a prompt with a Cartridge do not exist.")
        except AttachmentError as error:
            self._log.warning("Request %s is refused: %s", request.request_id, error)
            self._attached[request.request_id] = None
            request.skip_reading_prefix_cache = False
            salt = secrets.token_hex(32)
        else:
            if stands:
                self._attached[request.request_id] = attachment
                if attachment.residency == "pin":
                    self._residency.pin(_front(attachment), True)
            else:
                self._let_go(attachment)
            # What a request computes that only lets go is text, not the Cartridge's.
            salt = attachment.salt(self._key) if stands else secrets.token_hex(32)
        # Not the client's: placeholders are the same for all Cartridges, the salt alone tells their blocks apart.
        request.cache_salt = salt
        request.block_hashes.clear()
        request.update_block_hashes()

    def missing(self, request_id: str, num_computed_tokens: int) -> tuple[int | None, bool]:
        """Tokens to be had from the front behind those that are in blocks already, and whether that takes a load.

        None says: not now, ask again. A refused request is promised one token, whose load will fail.
        """
        if request_id not in self._attached:
            return 0, False
        attachment = self._attached[request_id]
        if attachment is None:
            return 1, True
        count = attachment.num_tokens - num_computed_tokens
        if count <= 0:
            self._residency.touch(_front(attachment))
            return 0, False
        state = self._residency.state(_front(attachment), self._bytes(attachment))
        if state == "never":
            self._log.error("Request %s: its Cartridge does not fit, or is of another length.", request_id)
            self._attached[request_id] = None
            return 1, True
        return (None, False) if state == "full" else (count, state == "loadable")

    def order(self, request_id: str, block_ids: tuple[list[int], ...], num_tokens: int) -> None:
        """Blocks are there: have the last `num_tokens` of the front written."""
        attachment = self._attached[request_id]
        if attachment is None:
            self._orders.writes.append(Write(request_id, "", (), 0, 0, block_ids, False))
            return
        front, total = _front(attachment), attachment.num_tokens
        loaded = self._residency.state(front, self._bytes(attachment)) == "resident"
        if loaded:
            self._residency.touch(front)
        else:
            self._orders.drop += self._residency.begin(front, self._bytes(attachment))
            self._loading[request_id] = front
        self._orders.writes.append(
            Write(request_id, attachment.tenant, front, total - num_tokens, total, block_ids, loaded)
        )

    def hand_over(self, idle: bool) -> Orders:
        """What gathered since the last step."""
        orders, self._orders = self._orders, Orders()
        orders.idle = idle
        return orders

    def settle(self, finished: set[str], failed: set[str]) -> None:
        """Loads of these requests have ended in every worker; of some of them badly, in one at least."""
        for request_id in finished:
            front = self._loading.pop(request_id, None)
            if front is not None and self._residency.end(front, loaded=request_id not in failed):
                # Some workers may have it where another failed.
                self._orders.drop.append(front)

    def forget(self, request_id: str) -> None:
        """A request has ended."""
        self._attached.pop(request_id, None)

    def _let_go(self, attachment: Attachment) -> None:
        if attachment.residency == "unpin":
            self._residency.pin(_front(attachment), False)
            return
        fronts = [_front(attachment)]
        if attachment.residency == "erase":
            fronts = [front for one in attachment.cartridges for front in self._residency.fronts_with(one.digest)]
        self._orders.drop += [front for front in fronts if self._residency.drop(front)]

    def _bytes(self, attachment: Attachment) -> int:
        return attachment.num_tokens * self._bytes_per_token


def _front(attachment: Attachment) -> Front:
    return tuple(cartridge.digest for cartridge in attachment.cartridges)
