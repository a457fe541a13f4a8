"""API keys of the gateway: made once, shown once, known again by their digest."""

import hmac
import re
import secrets
from collections.abc import Sequence
from datetime import datetime

from pydantic import BaseModel, ConfigDict
from sqlalchemy import select
from sqlalchemy.orm import Session

from cartridge_core.catalog.audit import Action, record_event
from cartridge_core.catalog.base import now
from cartridge_core.catalog.models import ApiKeyRow
from cartridge_core.digest import sha256_text
from cartridge_core.errors import NotFoundError, SettingsError
from cartridge_core.settings import valid_name

_TOKEN = re.compile(r"ck-([0-9a-f]{16})-[A-Za-z0-9_-]{43}")


class ApiKey(BaseModel):
    """A key without its secret."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key_id: str
    """Public part."""
    tenant: str
    name: str
    """What it is for."""
    corpora: tuple[str, ...] | None
    """Corpora that it opens; None for all of the tenant's."""
    operator: bool
    """Whether it may load, pin, promote and roll back."""
    requests_per_minute: int | None
    """None for no limit."""
    created_at: datetime
    revoked_at: datetime | None


def create_api_key(
    session: Session,
    tenant: str,
    name: str,
    *,
    corpora: Sequence[str] | None = None,
    operator: bool = False,
    requests_per_minute: int | None = None,
    actor: str = "",
) -> tuple[ApiKey, str]:
    """Make a key.

    Args:
        session: Open session.
        tenant: Whose corpora it opens.
        name: What it is for.
        corpora: Which of them; None for all.
        operator: Whether it may load, pin, promote and roll back.
        requests_per_minute: None for no limit.
        actor: Who asks, for the record.

    Returns:
        The key, and the token to send, which is kept nowhere.

    Raises:
        SettingsError: A name or the limit cannot be used.
    """
    for corpus in corpora or ():
        valid_name(corpus, "corpus name")
    if requests_per_minute is not None and requests_per_minute < 1:
        raise SettingsError(
            f"requests_per_minute = {requests_per_minute} lets nothing through.", "Use 1 or more, or revoke the key."
        )
    key_id = secrets.token_hex(8)
    token = f"ck-{key_id}-{secrets.token_urlsafe(32)}"
    row = ApiKeyRow(
        tenant=tenant,
        key_id=key_id,
        name=name,
        token_sha256=sha256_text(token),
        corpora=None if corpora is None else sorted(set(corpora)),
        operator=operator,
        requests_per_minute=requests_per_minute,
        revoked_at=None,
    )
    session.add(row)
    session.flush()
    details = {"name": name, "corpora": row.corpora, "operator": operator, "requests_per_minute": requests_per_minute}
    record_event(session, tenant, Action.KEY_CREATE, f"key {key_id}", actor=actor, details=details)
    return _key(row), token


def list_api_keys(session: Session, tenant: str) -> list[ApiKey]:
    """All keys of a tenant, revoked ones too, the oldest first."""
    rows = session.scalars(select(ApiKeyRow).where(ApiKeyRow.tenant == tenant).order_by(ApiKeyRow.id))
    return [_key(row) for row in rows]


def revoke_api_key(session: Session, tenant: str, key_id: str, *, actor: str = "") -> ApiKey:
    """Let a key open nothing any more; one that was revoked before stays as it is.

    Raises:
        NotFoundError: The tenant has no such key.
    """
    row = session.scalar(select(ApiKeyRow).where(ApiKeyRow.tenant == tenant, ApiKeyRow.key_id == key_id))
    if row is None:
        raise NotFoundError(f"Tenant {tenant!r} has no key {key_id!r}.", "`cartridge key list` shows those there are.")
    if row.revoked_at is None:
        row.revoked_at = now()
        record_event(session, tenant, Action.KEY_REVOKE, f"key {key_id}", actor=actor, details={"name": row.name})
    return _key(row)


def find_api_key(session: Session, key_id: str, token_sha256: str) -> ApiKey | None:
    """The key that a token of any tenant is; None if it is none, or was revoked.

    Args:
        session: Open session.
        key_id: The token's public part (`key_id_of`).
        token_sha256: Digest of the whole token.
    """
    for row in session.scalars(select(ApiKeyRow).where(ApiKeyRow.key_id == key_id)):
        if hmac.compare_digest(row.token_sha256, token_sha256) and row.revoked_at is None:
            return _key(row)
    return None


def key_id_of(token: str) -> str | None:
    """The public part of a token; None for what is no token at all."""
    match = _TOKEN.fullmatch(token)
    return match[1] if match else None


def any_api_key(session: Session, *, valid: bool = False) -> bool:
    """Whether there is, or ever was, a key of any tenant.

    Args:
        session: Open session.
        valid: Ask for one that was not revoked.
    """
    statement = select(ApiKeyRow.id).limit(1)
    if valid:
        statement = statement.where(ApiKeyRow.revoked_at.is_(None))
    return session.scalar(statement) is not None


def _key(row: ApiKeyRow) -> ApiKey:
    return ApiKey(
        key_id=row.key_id,
        tenant=row.tenant,
        name=row.name,
        corpora=None if row.corpora is None else tuple(row.corpora),
        operator=row.operator,
        requests_per_minute=row.requests_per_minute,
        created_at=row.created_at,
        revoked_at=row.revoked_at,
    )
