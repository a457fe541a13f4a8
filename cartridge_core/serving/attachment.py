"""What the gateway hands to vLLM beside a prompt: which Cartridges stand in front, for whom, until when; signed.

vLLM takes any client's word for its KV transfer parameters and its cache salt, and it shares blocks between requests of
the same token ids and salt. So both are ours: the connector attaches only what a key holder signed, and the salt is a
keyed hash of tenant and content, which nobody else can name.
"""

import base64
import binascii
import hashlib
import hmac
import json
import time
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cartridge_core.digest import canonical_json
from cartridge_core.errors import CartridgeError, SettingsError
from cartridge_core.settings import Settings

PARAMETER = "cartridge_attachment"
"""Key of the signed text in a request's `kv_transfer_params`."""

LIFETIME_S = 300.0
"""Seconds that a signature holds: longer than a request waits in vLLM's queue before the connector sees it."""

Keeping = Literal["cached", "pin", "unpin", "drop", "erase"]
"""What becomes of a Cartridge in the engine's memory; `erase` takes its files on the engine's disk as well."""

IN_FRONT: tuple[Keeping, ...] = ("cached", "pin")
"""With these a Cartridge stands in front of the request. What only lets one go needs nothing of it, which may be gone
everywhere else by then."""


def attachment_key(settings: Settings) -> bytes:
    """What gateway and engine share.

    Raises:
        SettingsError: There is none.
    """
    if settings.attachment_key is None:
        raise SettingsError(
            "There is no key to sign and verify attachments with.",
            "Set CARTRIDGE_ATTACHMENT_KEY, the same for gateway and engine: `openssl rand -hex 32` makes one.",
        )
    return settings.attachment_key.get_secret_value().encode()


class AttachmentError(CartridgeError):
    """What came with a request was not signed by a holder of the key, or no longer holds."""


class AttachedCartridge(BaseModel):
    """One Cartridge in front of a prompt."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    """Of its manifest."""
    num_tokens: int = Field(gt=0)
    """Placeholders that stand for it in the prompt."""


class Attachment(BaseModel):
    """The Cartridges in front of one prompt, in order."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tenant: str = Field(pattern=r"^[a-z0-9-]{1,63}$")
    """Whose they are; no other tenant's request shares their blocks."""
    cartridges: tuple[AttachedCartridge, ...] = Field(min_length=1, max_length=8)
    """What stands in front; several are composed in this order."""
    expires: float = Field(allow_inf_nan=False)
    """Unix time in seconds after which it is refused."""
    residency: Keeping = "cached"
    """What becomes of them in the engine's memory: kept as others are, kept whatever comes, no longer so, let go."""

    @property
    def num_tokens(self) -> int:
        """Placeholders in front of the user's own tokens."""
        return sum(cartridge.num_tokens for cartridge in self.cartridges)

    def salt(self, key: bytes) -> str:
        """What separates the blocks of this tenant and these Cartridges from all others: 64 hex digits."""
        named = canonical_json([self.tenant, [cartridge.digest for cartridge in self.cartridges]])
        return _mac(key, b"salt", named.encode()).hex()

    def signed(self, key: bytes) -> str:
        """The text that travels: payload and HMAC-SHA256, each in URL-safe base 64, with a dot between them."""
        payload = canonical_json(self.model_dump(mode="json")).encode()
        return f"{_text(payload)}.{_text(_mac(key, b'attachment', payload))}"

    @classmethod
    def verified(cls, signed: object, key: bytes, now: float | None = None) -> Self:
        """Read what travelled.

        Args:
            signed: As `signed` wrote it.
            key: The key it must have been signed with.
            now: Unix time in seconds; the clock's if None.

        Raises:
            AttachmentError: Another key signed it, it was changed, or it has expired.
        """
        payload, mac = _parts(signed)
        if not hmac.compare_digest(mac, _mac(key, b"attachment", payload)):
            raise AttachmentError(
                "A Cartridge's attachment is not signed with this engine's key.",
                "Give gateway and engine the same CARTRIDGE_ATTACHMENT_KEY.",
            )
        try:
            found = cls.model_validate(json.loads(payload))
        except (ValidationError, ValueError) as error:
            raise AttachmentError("A signed attachment of another version.", "Upgrade both sides.") from error
        if found.expires < (time.time() if now is None else now):
            raise AttachmentError(
                "A Cartridge's attachment has expired.", "Ask again; if it stays so, compare both machines' clocks."
            )
        return found


def tenant_salt(tenant: str, key: bytes) -> str:
    """What separates a tenant's blocks without a Cartridge from all others': 64 hex digits."""
    return _mac(key, b"tenant", tenant.encode()).hex()


def _mac(key: bytes, purpose: bytes, content: bytes) -> bytes:
    # The purpose keeps a salt, which vLLM sees and may log, from ever being a signature.
    return hmac.new(key, purpose + b"\0" + content, hashlib.sha256).digest()


def _text(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode().rstrip("=")


def _parts(signed: object) -> tuple[bytes, bytes]:
    try:
        if not isinstance(signed, str) or len(signed) > 4096:
            raise ValueError
        payload, mac = (base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)) for part in signed.split("."))
    except (ValueError, binascii.Error):
        raise AttachmentError("A Cartridge's attachment cannot be read.", "Only the gateway makes them.") from None
    return payload, mac
