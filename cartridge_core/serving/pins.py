"""Pins that outlive the process: written down by operators, taken up again when a gateway starts."""

import asyncio
import logging

from cartridge_core.catalog import Action, CatalogEntry, catalog_session, list_pins, record_event, record_pin
from cartridge_core.errors import CartridgeError, CatalogError
from cartridge_core.manifest import BaseModelIdentity
from cartridge_core.serving.composition import Composition, Wanted, parts_of
from cartridge_core.serving.engine import Engine
from cartridge_core.serving.errors import EngineError
from cartridge_core.serving.resolver import Catalogue, ResolvedCartridge, resolved_of
from cartridge_core.settings import Settings

log = logging.getLogger("cartridge.gateway")

_AGAIN_S = 5.0
"""A catalog that does not answer is asked again after so long."""


async def write_down(
    settings: Settings, wanted: Wanted, action: Action, actor: str, pinned: bool | None = None
) -> None:
    """Write down what an operator did to a Cartridge or a composition in memory.

    Args:
        settings: Name the catalog, with a role that may write.
        wanted: Which.
        action: What was done.
        actor: Who asked.
        pinned: Whether the Cartridge is pinned from now on; None where that stays as it was.

    Raises:
        CatalogError: The catalog does not take it.
    """

    def write() -> None:
        with catalog_session(settings) as session:
            if pinned is not None:
                record_pin(session, wanted.tenant, wanted.corpus, wanted.digest, pinned=pinned, actor=actor)
            # Of a composition each part, so that a Cartridge's history has it.
            together = {"composition": wanted.name} if isinstance(wanted, Composition) else {}
            for part in parts_of(wanted):
                subject = f"{part.corpus}/{part.digest[:12]}"
                record_event(
                    session, part.tenant, action, subject, actor=actor, details={"digest": part.digest, **together}
                )

    await asyncio.to_thread(write)


async def restore_pins(
    catalogue: Catalogue, base_model: BaseModelIdentity, engine: Engine, again_s: float = _AGAIN_S
) -> None:
    """Pin what was pinned when the last gateway stopped; what cannot be loaded is logged and left out.

    Args:
        catalogue: Where pins are; asked until it answers.
        base_model: The gateway's.
        engine: Keeps them.
        again_s: Seconds between two tries, of the catalog or of an engine that is not there yet.
    """

    def listed() -> list[CatalogEntry]:
        with catalogue.open().session(read_only=True) as session:
            return list_pins(session, base_model)

    while True:
        try:
            entries = await asyncio.to_thread(listed)
            break
        except CatalogError as error:
            log.warning("pins not restored yet", extra={"fields": {"problem": error.problem}})
            await asyncio.sleep(again_s)
    for entry in entries:
        cartridge = resolved_of(entry)
        if cartridge is None:
            continue
        named = {"tenant": entry.tenant, "corpus": entry.corpus, "digest": entry.digest[:12]}
        try:
            await _pinned(engine, cartridge, again_s)
        except CartridgeError as error:
            log.warning("pin not restored", extra={"fields": named | {"problem": error.problem}})
        else:
            log.info("pin restored", extra={"fields": named})


async def _pinned(engine: Engine, cartridge: ResolvedCartridge, again_s: float) -> None:
    while True:
        try:
            await engine.pin(cartridge, True)
            return
        except EngineError:
            # Servers behind HTTP may start later than their gateway.
            await asyncio.sleep(again_s)
