"""What a caller of the gateway can be told: each refusal has an HTTP status, a code and a remedy."""

from typing import ClassVar

from cartridge_core.errors import CartridgeError


class ServingError(CartridgeError):
    """A request that is not answered.

    Args:
        problem: What is wrong.
        remedy: What to do about it.
        param: The request's field that is to blame.
        retry_after: Seconds after which asking again makes sense.
    """

    status: ClassVar[int] = 500
    """HTTP status."""
    kind: ClassVar[str] = "server_error"
    """`type` in OpenAI's error envelope."""
    code: str = "internal_error"
    """`code` in OpenAI's error envelope."""
    may_fall_back: ClassVar[bool] = False
    """Whether an answer without the Cartridge is possible, if the caller or the operator asked for one."""

    def __init__(
        self,
        problem: str,
        remedy: str = "",
        *,
        param: str | None = None,
        retry_after: float | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(problem, remedy)
        self.param = param
        self.retry_after = retry_after
        if code is not None:
            self.code = code


class BadRequestError(ServingError):
    """The request says something that cannot be done."""

    status, kind, code = 400, "invalid_request_error", "invalid_value"


class ContextLengthError(BadRequestError):
    """The prompt, the Cartridge and the answer asked for exceed the model's window."""

    code = "context_length_exceeded"


class CompositionError(BadRequestError):
    """Several Cartridges were named and the operator has not switched composition on."""

    code = "composition_disabled"


class CompositionNotEvaluatedError(BadRequestError):
    """Several Cartridges were named that are not known to work together: no evaluation of them passed its gate."""

    code = "composition_not_evaluated"


class UnauthorizedError(ServingError):
    """No key, or one that is not valid."""

    status, kind, code = 401, "invalid_request_error", "invalid_api_key"


class ForbiddenError(ServingError):
    """A valid key that may not do this."""

    status, kind, code = 403, "invalid_request_error", "insufficient_permissions"


class ReadOnlyGatewayError(ForbiddenError):
    """The gateway's database user only reads, and it was given no operator's."""

    code = "read_only_gateway"


class UnknownModelError(ServingError):
    """No such corpus, alias or version for this caller."""

    status, kind, code = 404, "invalid_request_error", "model_not_found"


class NotPromotedError(UnknownModelError):
    """The corpus is there, and nothing is served for it yet."""

    code = "not_promoted"
    may_fall_back = True


class GoneError(ServingError):
    """The Cartridge was retired or erased."""

    status, kind, code = 410, "invalid_request_error", "cartridge_retired"
    may_fall_back = True


class WrongBaseModelError(ServingError):
    """The Cartridge belongs to another base model than this gateway's."""

    status, kind, code = 422, "invalid_request_error", "wrong_base_model"
    may_fall_back = True


class RateLimitedError(ServingError):
    """The key has used up its requests."""

    status, kind, code = 429, "rate_limit_error", "rate_limit_exceeded"


class UnavailableError(ServingError):
    """Something that answering needs does not answer itself; asking again may help."""

    status, code = 503, "unavailable"


class CatalogDownError(UnavailableError):
    """The catalog does not answer and nothing is remembered that is recent enough."""

    code = "catalog_unavailable"


class NotLoadedError(UnavailableError):
    """The Cartridge is still being loaded, or there is no room for it now."""

    code = "cartridge_not_loaded"
    may_fall_back = True


class ArtifactUnavailableError(UnavailableError):
    """The artifact store does not give the Cartridge."""

    code = "artifact_unavailable"
    may_fall_back = True


class OverloadedError(UnavailableError):
    """More requests wait than the engine takes."""

    code = "engine_overloaded"


class DrainingError(UnavailableError):
    """The gateway is about to stop."""

    code = "shutting_down"


class EngineError(UnavailableError):
    """The engine failed."""

    code = "engine_error"


class DamagedCartridgeError(ServingError):
    """The Cartridge's files are not what the catalog says; they are never served."""

    code = "cartridge_damaged"
    may_fall_back = True
