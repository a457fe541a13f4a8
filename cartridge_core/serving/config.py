"""How a gateway is run."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from cartridge_core.settings import server_address

Fallback = Literal["refuse", "icl", "none"]
"""What is answered where a Cartridge cannot be served: nothing, with the corpus in the prompt, without any context."""


class GatewayConfig(BaseModel):
    """How a gateway is run; fields of the file that `cartridge serve --config` names."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = "127.0.0.1"
    """Address to listen on; another than this machine's own needs API keys."""
    port: int = Field(default=8000, ge=0, le=65535)
    """Port to listen on; 0 takes a free one."""
    fallback: Fallback = "refuse"
    """What is answered where a Cartridge cannot be served, if the caller does not say."""
    composition: bool = False
    """Whether requests may name several Cartridges, `a+b`; answered where an evaluation of them passed the gate."""
    vllm_urls: tuple[Annotated[str, AfterValidator(server_address)], ...] = ()
    """Addresses of vLLM servers that `cartridge engine` started; none for the embedded engine."""
    window: int | None = Field(default=None, gt=0)
    """Longest sequence in tokens, where vLLM was started with less than the model's own."""
    max_outstanding: int = Field(default=1024, gt=0)
    """Answers under way at each vLLM server; more are refused with 503."""
    engine_timeout_s: float = Field(default=600.0, gt=0)
    """Seconds without a word after which an answer of a vLLM server is given up."""
    cache_bytes: int = Field(default=1 << 30, gt=0)
    """Most bytes of loaded Cartridges. This and the next three are the embedded engine's."""
    max_running: int = Field(default=32, gt=0)
    """Answers written at once."""
    max_waiting: int = Field(default=256, gt=0)
    """Answers that may wait; more are refused with 503."""
    load_wait_s: float = Field(default=10.0, gt=0)
    """Seconds that a request waits for its Cartridge to be loaded before it gets 503."""
    fresh_s: float = Field(default=2.0, ge=0)
    """Seconds for which the catalog's answer is taken as it was: how long a promotion takes to be seen."""
    stale_s: float = Field(default=60.0, ge=0)
    """Seconds for which it is still taken when the database does not answer."""
    catalog_timeout_s: float = Field(default=5.0, gt=0)
    """Seconds after which the database counts as down."""
    max_body_bytes: int = Field(default=8 << 20, gt=0)
    """Longest request body."""
    drain_s: float = Field(default=30.0, ge=0)
    """Seconds that answers being written get to end when the gateway is told to stop."""
