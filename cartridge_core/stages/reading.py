"""When and from where a corpus version was last read, and whether it was withdrawn: what changes about it.

Its documents never do. The record lies beside them and is replaced as a whole.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from cartridge_core.stages.store import Finished, write_json

RECORD = "reading.json"


@dataclass(frozen=True)
class Reading:
    """The last time that a corpus version was read."""

    read_at: str
    """UTC time, ISO 8601."""
    sources: tuple[str, ...] = ()
    """Absolute paths that it was read from; empty for what is left after something was forgotten."""
    withdrawn: str = ""
    """Why nothing may be made of it any more, or put in a prompt; empty where it may."""
    documents: tuple[str, ...] = ()
    """Digests and places of the documents for which it was withdrawn."""

    @classmethod
    def now(cls, sources: tuple[str, ...]) -> Reading:
        """A reading that takes place now."""
        return cls(datetime.now(UTC).isoformat(), sources)

    @classmethod
    def of(cls, product: Finished) -> Reading:
        """The last one of a corpus version; its first where there is no record (an older version's, or a kill's)."""
        try:
            record = json.loads((product.directory / RECORD).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return cls(product.finished_at, tuple(product.facts.get("sources", ())))
        return cls(record["read_at"], tuple(record["sources"]), record["withdrawn"], tuple(record["documents"]))

    def write(self, directory: Path) -> None:
        """Make it the last one of the corpus version in this folder."""
        write_json(directory / RECORD, asdict(self))
