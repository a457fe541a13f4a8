"""Writing a row that may be there already, also while others write the same one."""

from collections.abc import Callable
from typing import TypeVar

from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from cartridge_core.catalog.base import Base

RowT = TypeVar("RowT", bound=Base)

_ATTEMPTS = 5


def add_once(session: Session, find: Callable[[], RowT | None], make: Callable[[], RowT]) -> RowT:
    """The row that `find` sees, or else the one that `make` builds.

    On a server two writers may both find nothing; the database lets one of them insert, and the other looks again.

    Raises:
        IntegrityError: The row is refused for another reason than being there already.
    """
    for attempt in range(_ATTEMPTS):
        found = find()
        if found is not None:
            return found
        row = make()
        try:
            with session.begin_nested():
                session.add(row)
        except IntegrityError:
            if attempt == _ATTEMPTS - 1:
                raise
        else:
            break
    return row
