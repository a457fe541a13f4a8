"""Pins that outlive the process: written down by operators, taken up again when a gateway starts."""

import asyncio
import logging

from cartridge_core.catalog import CatalogEntry, catalog_session, list_pins, record_pin
from cartridge_core.errors import CartridgeError, CatalogError
from cartridge_core.manifest import BaseModelIdentity
from cartridge_core.serving.engine import Engine
from cartridge_core.serving.resolver import Catalogue, ResolvedCartridge, resolved_of
from cartridge_core.settings import Settings

log = logging.getLogger("cartridge.gateway")

_AGAIN_S = 5.0
"""A catalog that does not answer is asked again after so long."""


async def write_pin(settings: Settings, cartridge: ResolvedCartridge, pinned: bool, actor: str) -> None:
    """Write down that a Cartridge is pinned, or no longer.

    Args:
        settings: Name the catalog, with a role that may write.
        cartridge: Which.
        pinned: Whether it is.
        actor: Who asks.

    Raises:
        CatalogError: The catalog does not take it.
    """

    def write() -> None:
        with catalog_session(settings) as session:
            record_pin(session, cartridge.tenant, cartridge.corpus, cartridge.digest, pinned=pinned, actor=actor)

    await asyncio.to_thread(write)


async def restore_pins(
    catalogue: Catalogue, base_model: BaseModelIdentity, engine: Engine, again_s: float = _AGAIN_S
) -> None:
    """Pin what was pinned when the last gateway stopped; what cannot be loaded is logged and left out.

    Args:
        catalogue: Where pins are; asked until it answers.
        base_model: The gateway's.
        engine: Keeps them.
        again_s: Seconds between two tries to ask.
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
            await engine.pin(cartridge, True)
        except CartridgeError as error:
            log.warning("pin not restored", extra={"fields": named | {"problem": error.problem}})
        else:
            log.info("pin restored", extra={"fields": named})
