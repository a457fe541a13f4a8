import pytest

from cartridge_core.catalog import catalog_session
from cartridge_core.catalog.api_keys import (
    any_api_key,
    create_api_key,
    find_api_key,
    key_id_of,
    list_api_keys,
    revoke_api_key,
)
from cartridge_core.catalog.models import ApiKeyRow
from cartridge_core.digest import sha256_text
from cartridge_core.errors import NotFoundError, SettingsError
from cartridge_core.settings import Settings


def test_a_key_is_known_again_until_it_is_revoked(settings: Settings) -> None:
    with catalog_session(settings) as session:
        assert not any_api_key(session)
        key, token = create_api_key(session, "acme", "intranet", corpora=["law", "clinic"], requests_per_minute=60)
        other, other_token = create_api_key(session, "acme", "ops", operator=True)
    assert key_id_of(token) == key.key_id
    with catalog_session(settings) as session:
        assert find_api_key(session, key.key_id, sha256_text(token)) == key
        assert (key.tenant, key.corpora, key.operator, key.requests_per_minute) == (
            "acme",
            ("clinic", "law"),
            False,
            60,
        )
        assert (other.corpora, other.operator) == (None, True)
        assert find_api_key(session, key.key_id, sha256_text(other_token)) is None
        assert find_api_key(session, "0" * 16, sha256_text(token)) is None
        row = session.query(ApiKeyRow).filter_by(key_id=key.key_id).one()
        assert not any(token[20:] in str(value) for value in vars(row).values())
        with pytest.raises(NotFoundError, match="has no key"):
            revoke_api_key(session, "default", key.key_id)
        revoked = revoke_api_key(session, "acme", key.key_id)
        assert revoke_api_key(session, "acme", key.key_id) == revoked
        assert find_api_key(session, key.key_id, sha256_text(token)) is None
        assert any_api_key(session, valid=True)
        revoke_api_key(session, "acme", other.key_id)
        assert any_api_key(session) and not any_api_key(session, valid=True)
        assert [k.name for k in list_api_keys(session, "acme")] == ["intranet", "ops"]
        assert list_api_keys(session, "default") == []


def test_what_cannot_be_a_key(settings: Settings) -> None:
    with catalog_session(settings) as session:
        for wrong in (
            {"name": "Big Name"},
            {"name": "a", "corpora": ["../x"]},
            {"name": "a", "requests_per_minute": 0},
        ):
            with pytest.raises(SettingsError):
                create_api_key(session, "default", **wrong)  # type: ignore[arg-type]
    for text in ("", "sk-123", "ck-0123456789abcdef-short", "ck-0123456789ABCDEF-" + "x" * 43):
        assert key_id_of(text) is None
