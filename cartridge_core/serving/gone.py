"""Cartridges that were retired or erased leave the gateway's engine: its memory, its pins, its machine's disk."""

import asyncio
import logging

from cartridge_core.catalog import CatalogEntry, list_gone
from cartridge_core.errors import CatalogError
from cartridge_core.serving.engine import Engine
from cartridge_core.serving.resolver import Catalogue, resolved_of

log = logging.getLogger("cartridge.gateway")

_LOOK_S = 5.0
"""How often the catalog is asked about what the engine has."""


async def erase_gone(catalogue: Catalogue, engine: Engine) -> None:
    """Compare what the engine has with the catalog, again and again, and have it erase what nobody may serve.

    Again, because something may be in use, or be loaded once more by a request that was resolved before.

    Args:
        catalogue: Says what was retired or erased, whoever did that.
        engine: Has Cartridges.
    """
    told: set[str] = set()
    while True:
        await asyncio.sleep(_LOOK_S)
        try:
            gone = await _gone(catalogue, engine)
            for entry in gone:
                cartridge = resolved_of(entry)
                if cartridge is not None:
                    await engine.erase(cartridge)
                if entry.digest not in told:
                    fields = {"tenant": entry.tenant, "digest": entry.digest[:12], "status": entry.status.value}
                    log.info("a Cartridge has to go", extra={"fields": fields})
            told = {entry.digest for entry in gone}
        except CatalogError:
            pass  # Requests tell of that.
        except Exception:  # whatever it is, it has to be looked again
            log.exception("Cartridges that are gone could not be let go")


async def _gone(catalogue: Catalogue, engine: Engine) -> list[CatalogEntry]:
    held = await engine.held()

    def asked() -> list[CatalogEntry]:
        with catalogue.open().session(read_only=True) as session:
            return list_gone(session, held)

    return await asyncio.to_thread(asked) if held else []
