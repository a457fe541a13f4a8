"""Garbage: what no version, alias or pin needs any more."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cartridge_core.catalog import CatalogEntry, Status
from cartridge_core.errors import CartridgeError
from cartridge_core.progress import Progress, no_progress
from cartridge_core.settings import Settings
from cartridge_core.stages.erase import erase
from cartridge_core.stages.ingest import store_of
from cartridge_core.stages.local_copies import LocalCopies, cache_folder
from cartridge_core.upkeep.artifact_checks import orphans
from cartridge_core.upkeep.stores import Stores


@dataclass(frozen=True)
class Garbage:
    """One thing that can go."""

    kind: str
    """retired, orphan, upload, unfinished, work or copy."""
    subject: str
    """What it is: a Cartridge, a folder."""
    size: int
    """Bytes that it takes; of a retired Cartridge, those of its files in the artifact store."""
    reason: str
    """Why nobody needs it."""
    remove: Callable[[], object]
    """Removes it; raises where it came into use meanwhile."""


@dataclass(frozen=True)
class Removal:
    """What became of one piece of garbage."""

    garbage: Garbage
    removed: bool = False
    error: str | None = None
    """Why it is still there."""

    def as_json(self) -> dict[str, Any]:
        """The removal as JSON values."""
        garbage = self.garbage
        told = {"kind": garbage.kind, "subject": garbage.subject, "size": garbage.size, "reason": garbage.reason}
        return told | {"removed": self.removed, "error": self.error}


def collectable(
    entries: Sequence[CatalogEntry],
    since: Mapping[int, datetime],
    now: datetime,
    grace: timedelta,
    pinned: Collection[str] = (),
) -> list[CatalogEntry]:
    """Retired Cartridges that nothing needs: a pure function of the catalog.

    Args:
        entries: The tenant's Cartridges.
        since: When each got its status, by its row's number.
        now: This moment.
        grace: How long a retired Cartridge is kept.
        pinned: Digests that somebody keeps in use.
    """
    return [
        entry
        for entry in entries
        if entry.status is Status.RETIRED
        and not entry.aliases
        and entry.digest not in pinned
        and entry.cartridge_id in since
        and now - since[entry.cartridge_id] >= grace
    ]


def find_garbage(settings: Settings, grace: timedelta, actor: str = "") -> list[Garbage]:
    """Everything that can go; nothing is touched.

    Args:
        settings: Names the stores and the tenant.
        grace: What was retired, written or worked on more recently stays.
        actor: Who asks, for the record of what is removed later.

    Raises:
        StorageError, CatalogError: A store cannot be reached.
    """
    stores = Stores(settings, grace, actor=actor)
    return [
        *_retired(stores),
        *_leftovers(stores),
        *_unfinished_work(stores),
        *_work_of_the_deleted(stores),
        *_local_copies(stores),
    ]


def remove_garbage(found: Sequence[Garbage], progress: Progress = no_progress) -> list[Removal]:
    """Remove what `find_garbage` found; what came into use meanwhile stays, and says why."""
    done = []
    for number, garbage in enumerate(found):
        progress(number, len(found), f"removing {garbage.kind}")
        try:
            garbage.remove()
        except CartridgeError as error:
            done.append(Removal(garbage, error=str(error)))
        else:
            done.append(Removal(garbage, removed=True))
    progress(len(found), len(found), "removed")
    return done


def _retired(stores: Stores) -> Iterator[Garbage]:
    gone = collectable(stores.entries, stores.status_since, stores.now, stores.grace, stores.pinned)
    numbers = {entry.cartridge_id for entry in gone}
    kept = {entry.digest for entry in stores.live if entry.cartridge_id not in numbers}
    seen: set[str] = set()
    for entry in gone:
        shared = entry.digest in kept | seen
        seen.add(entry.digest)
        yield Garbage(
            "retired",
            f"{entry.corpus}/{entry.digest[:12]}",
            0 if shared else entry.size_bytes or 0,
            f"Retired since {stores.status_since[entry.cartridge_id]:%Y-%m-%d}; no alias points at it.",
            # Not forced: where an alias points at it by then, the deletion is refused.
            lambda entry=entry: erase(  # type: ignore[misc]
                stores.settings, entry.corpus, entry.digest, reason="garbage", actor=stores.actor
            ),
        )


def _leftovers(stores: Stores) -> Iterator[Garbage]:
    for trouble in orphans(stores):
        names = stores.folders[trouble.subject]
        size = sum(stores.files.size(f"{trouble.subject}/{name}") for name in names)
        if trouble.repair is not None:
            yield Garbage("orphan", trouble.subject, size, trouble.problem, trouble.repair)
    for left in stores.files.unfinished():
        if stores.old(left.started_at):
            yield Garbage(
                "upload",
                left.key,
                left.size,
                "Its writer was killed.",
                lambda left=left: stores.files.abandon(left),  # type: ignore[misc]
            )


def _unfinished_work(stores: Stores) -> Iterator[Garbage]:
    work = store_of(stores.settings)
    for folder in work.unfinished():
        size, newest = _measured(folder)
        if stores.old(newest):
            yield Garbage(
                "unfinished",
                f"{folder.parent.name}/{folder.name[:12]}",
                size,
                f"Interrupted work, untouched since {newest:%Y-%m-%d}.",
                lambda folder=folder: work.discard(folder),  # type: ignore[misc]
            )


def _work_of_the_deleted(stores: Stores) -> Iterator[Garbage]:
    """Training and grading of Cartridges that were deleted, as when that was done on another machine."""
    work = store_of(stores.settings)
    deleted = {entry.digest: entry for entry in stores.entries if entry.status is Status.DELETED}
    live = {entry.digest for entry in stores.live}
    for stage, fact in (("fit", "digest"), ("grade", "cartridge")):
        for product in work.finished(stage):
            entry = deleted.get(product.facts[fact])
            if entry is None or entry.digest in live or not stores.old(stores.status_since[entry.cartridge_id]):
                continue
            yield Garbage(
                "work",
                f"{stage}/{product.key[:12]}",
                _measured(product.directory)[0],
                f"Its Cartridge {entry.digest[:12]} was deleted.",
                lambda product=product: work.forget(product),  # type: ignore[misc]
            )


def _local_copies(stores: Stores) -> Iterator[Garbage]:
    live = {entry.digest for entry in stores.live}
    place = cache_folder(stores.settings, "any").parent
    for folder in sorted(place.iterdir()) if place.is_dir() else ():
        size, newest = _measured(folder)
        if folder.is_dir() and folder.name not in live and stores.old(newest):
            yield Garbage(
                "copy",
                f"cache/{folder.name[:12]}",
                size,
                "A local copy of nothing that the catalog lists.",
                lambda folder=folder: LocalCopies(stores.settings).give_up(folder),  # type: ignore[misc]
            )


def _measured(folder: Path) -> tuple[int, datetime]:
    """Bytes of a folder's files, and when it was last written to."""
    size, newest = 0, folder.stat().st_mtime
    for path in folder.rglob("*"):
        try:
            state = path.stat()
        except FileNotFoundError:  # somebody works in there
            continue
        newest = max(newest, state.st_mtime)
        size += state.st_size if path.is_file() else 0
    return size, datetime.fromtimestamp(newest, UTC)
