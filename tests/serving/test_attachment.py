import base64
import json

import pytest

from cartridge_core.errors import SettingsError
from cartridge_core.serving.attachment import AttachedCartridge, Attachment, AttachmentError, attachment_key
from cartridge_core.settings import Settings

KEY, OTHER = b"k" * 32, b"o" * 32
A, B = (AttachedCartridge(digest=letter * 64, num_tokens=count) for letter, count in (("a", 3), ("b", 5)))


def attachment(*cartridges: AttachedCartridge, tenant: str = "default", expires: float = 1000.0) -> Attachment:
    return Attachment(tenant=tenant, cartridges=cartridges, expires=expires)


def test_what_was_signed_is_read_back() -> None:
    made = attachment(A, B)
    assert Attachment.verified(made.signed(KEY), KEY, now=999.0) == made
    assert made.num_tokens == 8


def test_another_key_is_refused() -> None:
    with pytest.raises(AttachmentError, match="not signed"):
        Attachment.verified(attachment(A).signed(OTHER), KEY, now=0)


def test_it_expires() -> None:
    signed = attachment(A, expires=1000.0).signed(KEY)
    Attachment.verified(signed, KEY, now=1000.0)
    with pytest.raises(AttachmentError, match="expired"):
        Attachment.verified(signed, KEY, now=1000.1)


def test_no_character_can_be_changed() -> None:
    signed = attachment(A).signed(KEY)
    for place in range(len(signed)):
        changed = signed[:place] + ("B" if signed[place] != "B" else "C") + signed[place + 1 :]
        try:
            found = Attachment.verified(changed, KEY, now=0)
        except AttachmentError:
            continue
        # Base 64 leaves bits of a last character unused; what is read is the same.
        assert found == attachment(A) and place in (signed.index(".") - 1, len(signed) - 1)


@pytest.mark.parametrize("signed", [None, 3, "", ".", "a.b.c", "é.é", "a" * 5000])
def test_what_is_no_attachment_is_refused(signed: object) -> None:
    with pytest.raises(AttachmentError):
        Attachment.verified(signed, KEY, now=0)


def test_a_salt_is_no_signature_and_a_signed_lie_is_refused() -> None:
    payload = json.dumps({"tenant": "default", "cartridges": [], "expires": 2000.0}).encode()
    salt = bytes.fromhex(attachment(A).salt(KEY))
    text = ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in (payload, salt))
    with pytest.raises(AttachmentError, match="not signed"):
        Attachment.verified(text, KEY, now=0)


def test_salts_differ_by_tenant_content_order_and_key() -> None:
    made = [
        attachment(A).salt(KEY),
        attachment(B).salt(KEY),
        attachment(A, B).salt(KEY),
        attachment(B, A).salt(KEY),
        attachment(A, tenant="other").salt(KEY),
        attachment(A).salt(OTHER),
    ]
    assert len(set(made)) == len(made)
    assert attachment(A, expires=5.0).salt(KEY) == made[0]
    # vLLM takes 1 to 128 characters, without slashes.
    assert all(len(salt) == 64 and salt.isalnum() for salt in made)


def test_the_key_is_needed_and_never_shown() -> None:
    with pytest.raises(SettingsError, match="openssl rand"):
        attachment_key(Settings())
    with pytest.raises(SettingsError, match="attachment_key") as refused:
        Settings(attachment_key="too short a secret")
    assert "secret" not in str(refused.value)
    assert "z" * 40 not in repr(Settings(attachment_key="z" * 40))
