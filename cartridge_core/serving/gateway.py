"""The parts of a gateway, put together."""

from fastapi import Request

from cartridge_core.serving.answering import Answerer
from cartridge_core.serving.caller import Caller
from cartridge_core.serving.completions import Completions
from cartridge_core.serving.composition import Compositions
from cartridge_core.serving.config import GatewayConfig
from cartridge_core.serving.door import Door
from cartridge_core.serving.engine import Engine
from cartridge_core.serving.errors import ForbiddenError
from cartridge_core.serving.metrics import Metrics
from cartridge_core.serving.model_list import ModelList
from cartridge_core.serving.prompt import PromptRenderer, ServedModel
from cartridge_core.serving.remembered import Freshness
from cartridge_core.serving.request_log import InFlight
from cartridge_core.serving.resolver import Catalogue, Resolver
from cartridge_core.settings import Settings


class Gateway:
    """The parts of one gateway, put together.

    Args:
        settings: Name the stores and the tenant of those who need no key.
        config: How it is run.
        model: Its base model.
        engine: What computes.
    """

    def __init__(self, settings: Settings, config: GatewayConfig, model: ServedModel, engine: Engine) -> None:
        self.settings, self.config, self.model, self.engine = settings, config, model, engine
        self.catalogue = Catalogue(settings)
        freshness = Freshness(config.fresh_s, config.stale_s, config.catalog_timeout_s)
        self.resolver = Resolver(self.catalogue, model.identity, freshness)
        self.compositions = Compositions(self.resolver, config.composition)
        self.door = Door(self.catalogue, settings.tenant, freshness)
        self.renderer = PromptRenderer(model, settings)
        self.metrics = Metrics(engine)
        self.in_flight = InFlight()
        answerer = Answerer(model, self.resolver, self.compositions, self.renderer, engine, config.fallback)
        self.completions = Completions(answerer, self.metrics)
        self.models = ModelList(model, self.resolver, self.compositions)

    async def caller(self, request: Request) -> Caller:
        """Who asks.

        Raises:
            UnauthorizedError: Nobody that may.
        """
        caller = await self.door.caller(request.headers)
        request.state.record.tenant = caller.tenant
        request.state.record.fields["key"] = caller.key_id
        return caller

    async def reader_of_metrics(self, request: Request) -> Caller:
        """Who reads the numbers, which tell of all tenants: with keys, an operator of the gateway's own tenant.

        Raises:
            UnauthorizedError, ForbiddenError: Somebody else.
        """
        caller = await self.caller(request)
        if caller.key_id is not None:
            caller.check_operator()
            if caller.tenant != self.settings.tenant:
                raise ForbiddenError("These numbers are for the gateway's own operators.")
        return caller

    async def close(self) -> None:
        """Give everything back."""
        await self.engine.close()
        self.resolver.close()
        self.door.close()
        self.renderer.close()
        self.catalogue.close()
