"""What operators do: look at Cartridges, load, pin and unload them, promote and roll back."""

import asyncio
import importlib.util
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from cartridge_core.catalog import CHAMPION, Action, Catalog, CatalogEntry, find_cartridge, list_cartridges
from cartridge_core.publishing import Promotion, promote, rollback
from cartridge_core.serving.caller import Caller
from cartridge_core.serving.composition import Composition, Wanted
from cartridge_core.serving.errors import (
    BadRequestError,
    ForbiddenError,
    ReadOnlyGatewayError,
    ServingError,
    UnknownModelError,
)
from cartridge_core.serving.gateway import Gateway
from cartridge_core.serving.model_name import CorpusReference, parse_model_name, unknown_model
from cartridge_core.serving.pins import write_down
from cartridge_core.serving.resolver import ResolvedCartridge, resolved_of
from cartridge_core.settings import Settings


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


# What a database cannot keep is refused, not tried.
Reason = Annotated[str, Field(max_length=2000, pattern=r"^[^\x00]*$")]

_LARGEST_NUMBER = 2**31 - 1
"""Of a catalog's row."""


class Named(_Body):
    """A Cartridge or a composition by name."""

    model: str = Field(min_length=1, max_length=512)
    """`corpus`, `corpus@alias`, `corpus:version`, or several of these with a plus between them."""


class Pinning(Named):
    """A Cartridge to keep in memory, or no longer."""

    pinned: bool = True


class Promoting(_Body):
    """An alias to move."""

    corpus: str
    reference: str | None = None
    """A version, an alias or the start of a digest; the newest Cartridge where nobody says."""
    alias: str = CHAMPION
    force: bool = False
    """Whatever the gate says; that is written down."""
    reason: Reason = ""


class RollingBack(_Body):
    """An alias to move back."""

    corpus: str
    alias: str = CHAMPION
    reason: Reason = ""


class CompositionPinError(BadRequestError):
    """A composition was to be pinned."""

    code = "composition_not_pinned"


class GateRefusedError(ServingError):
    """The promotion gate left the alias where it was."""

    status, kind, code = 409, "invalid_request_error", "gate_refused"


class Operations:
    """What the endpoints do.

    Args:
        gateway: Whose Cartridges.
    """

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def caller(self, request: Request) -> Caller:
        """An operator, with a key that says so.

        Raises:
            UnauthorizedError, ForbiddenError: Anybody else.
        """
        caller = await self._gateway.caller(request)
        caller.check_operator()
        return caller

    async def cartridges(self, caller: Caller, limit: int, before: int | None) -> list[dict[str, Any]]:
        """Registered Cartridges of the caller's corpora, the newest first, and which are in memory.

        Args:
            caller: Who asks.
            limit: Most of them.
            before: Only those older than the one of this number: the next page.
        """
        resident = {
            one.cartridge.digest: one
            for one in await self._gateway.engine.residents()
            if one.cartridge.tenant == caller.tenant
        }

        def listed() -> list[CatalogEntry]:
            with self._gateway.catalogue.open().session(read_only=True) as session:
                return list_cartridges(session, caller.tenant, within=caller.corpora, limit=limit, before=before)

        return [
            {
                "number": entry.cartridge_id,
                "model": f"{entry.corpus}:{entry.version}",
                "digest": entry.digest,
                "base_model": entry.base_model.id,
                "served_here": entry.base_model == self._gateway.model.identity,
                "status": entry.status.value,
                "aliases": list(entry.aliases),
                "num_tokens": entry.num_tokens,
                "kv_bytes": entry.kv_bytes,
                "resident": entry.digest in resident,
                "pinned": entry.digest in resident and resident[entry.digest].pinned,
                "in_use": resident[entry.digest].in_use if entry.digest in resident else 0,
            }
            for entry in await asyncio.to_thread(listed)
        ]

    async def compositions(self, caller: Caller) -> list[dict[str, Any]]:
        """Compositions of the caller's Cartridges that are in memory."""
        held = [(one.cartridge, one) for one in await self._gateway.engine.residents()]
        return [
            {"model": composition.name, "num_bytes": one.num_bytes, "in_use": one.in_use}
            for composition, one in held
            if isinstance(composition, Composition) and composition.tenant == caller.tenant
            if all(caller.may_use(part.corpus) for part in composition.parts)
        ]

    async def load(self, caller: Caller, body: Named) -> dict[str, Any]:
        """Load a Cartridge or a composition before anybody asks for it."""
        settings = self._operator_settings(caller)
        wanted, said = await self._wanted(caller, body.model)
        await self._gateway.engine.load(wanted)
        await write_down(settings, wanted, Action.LOAD, _actor(caller))
        return said | {"resident": True}

    async def pin(self, caller: Caller, body: Pinning) -> dict[str, Any]:
        """Load a Cartridge and keep it, also when the gateway starts again, or let it go like others, also one that was
        retired or erased.

        Where the catalog does not take it down, it holds as long as this process, and asking again mends that.

        Raises:
            CompositionPinError: Several are named.
        """
        settings = self._operator_settings(caller)
        cartridge, said = await self._wanted(caller, body.model, gone=not body.pinned)
        if isinstance(cartridge, Composition):
            raise CompositionPinError(
                f"{cartridge.name} composes Cartridges and cannot be pinned: a pin stays, and a composition may be "
                "served only as long as its newest evaluation passes.",
                "Load it; it stays in memory as long as it is asked for.",
                param="model",
            )
        await self._gateway.engine.pin(cartridge, body.pinned)
        action = Action.PIN if body.pinned else Action.UNPIN
        await write_down(settings, cartridge, action, _actor(caller), body.pinned)
        return said | {"pinned": body.pinned}

    async def unload(self, caller: Caller, body: Named) -> dict[str, Any]:
        """Drop a Cartridge from memory, its pin and compositions with it as well, or a composition alone, also what was
        retired or erased; answers that are being written keep it."""
        settings = self._operator_settings(caller)
        wanted, said = await self._wanted(caller, body.model, gone=True)
        await self._gateway.engine.unload(wanted.digest)
        pinned = None if isinstance(wanted, Composition) else False
        await write_down(settings, wanted, Action.UNLOAD, _actor(caller), pinned)
        return said | {"resident": False}

    async def promote(self, caller: Caller, body: Promoting) -> dict[str, Any]:
        """Move an alias, through the gate; the Cartridge is loaded first, so that nobody waits for it."""
        settings = self._settings(caller, body.corpus)
        target = await asyncio.to_thread(self._target, settings, body)
        if target is not None and target.base_model == self._gateway.model.identity:
            await self._gateway.engine.load(target)

        def move() -> Promotion:
            return promote(
                settings,
                body.corpus,
                body.reference,
                alias=body.alias,
                force=body.force,
                reason=body.reason,
                actor=_actor(caller),
            )

        return self._moved(await asyncio.to_thread(move))

    async def rollback(self, caller: Caller, body: RollingBack) -> dict[str, Any]:
        """Move an alias back to where it pointed before."""
        settings = self._settings(caller, body.corpus)

        def move() -> Promotion:
            return rollback(settings, body.corpus, alias=body.alias, reason=body.reason, actor=_actor(caller))

        return self._moved(await asyncio.to_thread(move))

    async def _wanted(self, caller: Caller, name: str, *, gone: bool = False) -> tuple[Wanted, dict[str, Any]]:
        """What an operator named, and what may be said of it; `gone`: also what may not be served any longer."""
        references = parse_model_name(name, self._gateway.model.identity.id)
        if not references:
            raise UnknownModelError(f"{name!r} is the base model, not a Cartridge.", "Name a corpus.", param="model")
        for reference in references:
            caller.check(reference)
        if len(references) > 1:
            composition, evaluation = await self._gateway.compositions.find(caller.tenant, references, gone=gone)
            return composition, composition.describe(evaluation)
        cartridge = await self._gateway.resolver.resolve(caller.tenant, references[0], gone=gone)
        return cartridge, cartridge.describe()

    def _settings(self, caller: Caller, corpus: str) -> Settings:
        """Settings of the caller's tenant, with the database role that may write."""
        if not caller.may_use(corpus):
            raise unknown_model(str(CorpusReference(corpus)))
        if importlib.util.find_spec("mlflow") is None:
            # Asked before anything moves: an alias must not be left half shown.
            raise ForbiddenError(
                "This gateway was installed without the registry, so it moves no aliases.",
                "Use `cartridge promote`, or install the extra `registry` here.",
            )
        return self._operator_settings(caller)

    def _operator_settings(self, caller: Caller) -> Settings:
        """Settings of the caller's tenant, with the database user who may write. Asked before anything is done.

        Raises:
            ReadOnlyGatewayError: A server's catalog, and no user but the gateway's own.
        """
        settings = self._gateway.settings
        if settings.operator_catalog_url is None and not settings.catalog_url.startswith("sqlite"):
            raise ReadOnlyGatewayError(
                "This gateway only reads the catalog: it was given no operator's connection.",
                "Use the `cartridge` command, or set CARTRIDGE_OPERATOR_CATALOG_URL for the gateway.",
            )
        return settings.as_operator().model_copy(update={"tenant": caller.tenant})

    def _target(self, settings: Settings, body: Promoting) -> ResolvedCartridge | None:
        with Catalog(settings) as catalog, catalog.session(read_only=True) as session:
            if body.reference is not None:
                return resolved_of(find_cartridge(session, settings.tenant, body.corpus, body.reference))
            newest = list_cartridges(session, settings.tenant, body.corpus, limit=1)
            return resolved_of(newest[0]) if newest else None

    def _moved(self, promotion: Promotion) -> dict[str, Any]:
        decision = promotion.decision
        if promotion.refused:
            raise GateRefusedError(
                f"The gate refused: {decision.sentence if decision else ''}", "Promote another one, or send force."
            )
        # Others see it after `fresh_s`; this gateway at once.
        self._gateway.resolver.forget()
        return {
            "corpus": promotion.entry.corpus,
            "alias": promotion.alias,
            "moved": promotion.moved,
            "version": promotion.entry.version,
            "digest": promotion.entry.digest,
            "gate": None if decision is None else decision.model_dump(mode="json"),
            "projection_error": promotion.projection_error,
        }


def operator_routes(gateway: Gateway) -> APIRouter:
    """The endpoints below /admin.

    Args:
        gateway: Whose Cartridges.
    """
    router = APIRouter(prefix="/admin", tags=["operators"])
    operations = Operations(gateway)
    Operator = Annotated[Caller, Depends(operations.caller)]

    @router.get("/cartridges")
    async def cartridges(
        caller: Operator,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        before: Annotated[int | None, Query(ge=1, le=_LARGEST_NUMBER)] = None,
    ) -> dict[str, Any]:
        """List registered Cartridges, the newest first, and what the cache did; `before` is a `number` of the list."""
        counts = asdict(gateway.engine.cache_counts())
        return {
            "cartridges": await operations.cartridges(caller, limit, before),
            "compositions": await operations.compositions(caller),
            "cache": counts,
        }

    @router.post("/cartridges/load")
    async def load(body: Named, caller: Operator) -> dict[str, Any]:
        """Load a Cartridge or a composition into memory."""
        return await operations.load(caller, body)

    @router.post("/cartridges/pin")
    async def pin(body: Pinning, caller: Operator) -> dict[str, Any]:
        """Keep a Cartridge in memory, or no longer."""
        return await operations.pin(caller, body)

    @router.post("/cartridges/unload")
    async def unload(body: Named, caller: Operator) -> dict[str, Any]:
        """Drop a Cartridge or a composition from memory."""
        return await operations.unload(caller, body)

    @router.post("/promote")
    async def promote_cartridge(body: Promoting, caller: Operator) -> dict[str, Any]:
        """Move an alias, if the gate lets the Cartridge pass."""
        return await operations.promote(caller, body)

    @router.post("/rollback")
    async def roll_back(body: RollingBack, caller: Operator) -> dict[str, Any]:
        """Move an alias back."""
        return await operations.rollback(caller, body)

    return router


def _actor(caller: Caller) -> str:
    return f"key {caller.key_id}"
