"""The audit log: who did what, when. Written in the transaction of the deed itself, and never changed."""

import re
from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict
from sqlalchemy import select
from sqlalchemy.orm import Session

from cartridge_core.catalog.models import AuditEventRow

_LONGEST = 255


class Action(StrEnum):
    """What is written down."""

    REGISTER = "register"
    PROMOTE = "promote"
    ROLLBACK = "rollback"
    CLEAR = "clear"
    """An alias was taken away."""
    RETIRE = "retire"
    ERASE = "erase"
    FORGET = "forget"
    """A corpus or a document was erased with all that was made of it."""
    KEY_CREATE = "key-create"
    KEY_REVOKE = "key-revoke"
    LOAD = "load"
    PIN = "pin"
    UNPIN = "unpin"
    UNLOAD = "unload"
    REPAIR = "repair"
    """`cartridge doctor` set something right."""


class AuditEvent(BaseModel):
    """One line of the log."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    event_id: int
    """Number of the line."""
    tenant: str
    created_at: datetime
    actor: str
    """Who asked for it, as far as anybody said: a user, `key ID` or `prefect`."""
    action: Action
    subject: str
    """What it was done to: `clinic`, `clinic@champion`, `clinic/3f2a...`, `key 5f0c...`."""
    details: dict[str, Any]
    """What else there is to say; never a secret, nor any text of a corpus."""


def record_event(
    session: Session,
    tenant: str,
    action: Action,
    subject: str,
    *,
    actor: str = "",
    details: Mapping[str, Any] | None = None,
) -> None:
    """Write a line into the log; it is there if and only if the session's transaction is committed.

    Args:
        session: Open session.
        tenant: Whose log.
        action: What was done.
        subject: To what.
        actor: Who asked for it.
        details: JSON values. No secrets, no text of a corpus: the log outlives every erasure.
    """
    session.add(
        AuditEventRow(
            tenant=tenant,
            actor=actor[:_LONGEST],
            action=action.value,
            subject=subject[:_LONGEST],
            topic=_topic(subject),
            details=dict(details or {}),
        )
    )
    session.flush()


def list_events(
    session: Session,
    tenant: str,
    *,
    action: Action | None = None,
    actor: str | None = None,
    subject: str | None = None,
    since: datetime | None = None,
    before: int | None = None,
    limit: int = 100,
) -> list[AuditEvent]:
    """Lines of the log, the newest first.

    Args:
        session: Open session.
        tenant: Whose log.
        action: Only this action.
        actor: Only what this one did.
        subject: Only what was done to this corpus, alias, Cartridge or key; a corpus stands for all that is its.
        since: Only from then on.
        before: Only lines before the one of this number: the next page.
        limit: Most lines.
    """
    statement = select(AuditEventRow).where(AuditEventRow.tenant == tenant)
    if action is not None:
        statement = statement.where(AuditEventRow.action == action.value)
    if actor is not None:
        statement = statement.where(AuditEventRow.actor == actor)
    if subject is not None:
        statement = statement.where(AuditEventRow.topic == _topic(subject))
        if subject != _topic(subject):
            statement = statement.where(AuditEventRow.subject == subject)
    if since is not None:
        statement = statement.where(AuditEventRow.created_at >= since)
    if before is not None:
        statement = statement.where(AuditEventRow.id < before)
    rows = session.scalars(statement.order_by(AuditEventRow.id.desc()).limit(limit))
    return [
        AuditEvent(
            event_id=row.id,
            tenant=row.tenant,
            created_at=row.created_at,
            actor=row.actor,
            action=Action(row.action),
            subject=row.subject,
            details=row.details,
        )
        for row in rows
    ]


def _topic(subject: str) -> str:
    return re.split("[@/]", subject, maxsplit=1)[0][:_LONGEST]
