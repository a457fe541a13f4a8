"""How a vLLM server has to be started so that it serves Cartridges."""

import importlib.util
import json
import sys
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field

from cartridge_core.errors import SettingsError
from cartridge_core.model_files import locate
from cartridge_core.serving.attachment import attachment_key
from cartridge_core.serving.residency import DEFAULT_CACHE_BYTES
from cartridge_core.settings import Settings
from cartridge_core.stages.model import model_name

_SERVER = "vllm.entrypoints.openai.api_server"
"""A module, not vLLM's command: the repackaging for CPUs has no working one."""

_OURS = ("--model", "--served-model-name", "--kv-transfer-config", "--middleware", "--host", "--port")
"""Options that are set here."""


class EngineConfig(BaseModel):
    """How a vLLM server is run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = "127.0.0.1"
    """Address to listen on; only gateways should reach it."""
    port: int = Field(default=8001, ge=1, le=65535)
    """Port to listen on."""
    cache_bytes: int = Field(default=DEFAULT_CACHE_BYTES, gt=0)
    """Most bytes of Cartridges in each worker's host memory."""


def engine_command(settings: Settings, config: EngineConfig, model: str | None, others: Sequence[str]) -> list[str]:
    """The command that starts vLLM with the connector.

    Args:
        settings: Name the artifact store, the key, the folder of local copies and the base model.
        config: How it is run.
        model: Hub id or folder; None for the settings' own.
        others: Further options of vLLM's, as they are.

    Raises:
        SettingsError: The key is missing, vLLM is not installed, or an option is given that is set here.
        CartridgeError: The model cannot be found or fetched.
    """
    attachment_key(settings)
    if importlib.util.find_spec("vllm") is None:
        raise SettingsError(
            "vLLM is not installed beside this command.",
            "Use the vLLM image, or an environment of its own: `make vllm-setup`.",
        )
    for option in others:
        name = option.partition("=")[0]
        if name in _OURS:
            raise SettingsError(f"{name} is set by `cartridge engine` itself.", "Use its own options.")
    files = locate(model_name(settings, model))
    transfer = {
        "kv_connector": "CartridgeConnector",
        "kv_role": "kv_consumer",
        "kv_load_failure_policy": "fail",
        "kv_connector_extra_config": {"cache_bytes": config.cache_bytes},
    }
    return [
        *(sys.executable, "-m", _SERVER, "--model", str(files.folder), "--served-model-name", files.id),
        *("--host", config.host, "--port", str(config.port)),
        *("--kv-transfer-config", json.dumps(transfer)),
        *("--middleware", "cartridge_core.serving.engine_door.EngineDoor"),
        # A model that may put white space anywhere in JSON can go on with it until the answer's length is used up.
        *("--structured-outputs-config", json.dumps({"backend": "xgrammar", "disable_any_whitespace": True})),
        # How the gateway sees that an answer came through its Cartridge.
        "--enable-prompt-tokens-details",
        *others,
    ]
