"""Sessions that refuse to change append-only rows.

Triggers in the database refuse it too, for everyone. This says it earlier, in words, to our own code.
"""

from typing import Any

from sqlalchemy import event
from sqlalchemy.orm import Mapper, ORMExecuteState, Session

from cartridge_core.catalog.base import AppendOnly
from cartridge_core.errors import CatalogError


class CatalogSession(Session):
    """A session on the catalog."""


def _refusal(table: str) -> CatalogError:
    return CatalogError(
        f"Rows of {table} are never changed or removed.",
        "Add a row that says what is different, or delete the Cartridge.",
    )


@event.listens_for(CatalogSession, "before_flush")
def _refuse_changed_rows(session: Session, context: Any, instances: Any) -> None:
    touched = [*session.deleted, *(row for row in session.dirty if session.is_modified(row))]
    for row in touched:
        if isinstance(row, AppendOnly):
            raise _refusal(str(getattr(row, "__tablename__", "this table")))


@event.listens_for(CatalogSession, "do_orm_execute")
def _refuse_bulk_changes(state: ORMExecuteState) -> None:
    if not (state.is_update or state.is_delete):
        return
    mapper: Mapper[Any] | None = state.bind_mapper
    if mapper is not None and issubclass(mapper.class_, AppendOnly):
        raise _refusal(str(mapper.local_table))
