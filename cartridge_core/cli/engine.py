"""`cartridge engine`: vLLM, started so that it serves Cartridges."""

import json
import os
import shlex
import sys
from typing import Annotated

import typer

from cartridge_core.cli.console import JsonOption
from cartridge_core.cli.options import Model
from cartridge_core.settings import Settings
from cartridge_core.stages.config import config_of


def engine(
    context: typer.Context,
    host: Annotated[
        str | None, typer.Option(help="Address to listen on; only gateways should reach it. Default: 127.0.0.1.")
    ] = None,
    port: Annotated[int | None, typer.Option(help="Port. Default: 8001.")] = None,
    model: Model = None,
    cache_bytes: Annotated[
        int | None, typer.Option(help="Most bytes of Cartridges in each worker's host memory. Default: 4 GiB.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the command and do not run it.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Start vLLM's server with the Cartridge connector; options after `--` are vLLM's own.

    Runs in an environment with vLLM, beside which this package's base is installed. Gateway and engine need the same
    CARTRIDGE_ATTACHMENT_KEY; the files come from CARTRIDGE_ARTIFACT_ROOT.

    Example: `cartridge engine --port 8001 -- --max-model-len 8192 --gpu-memory-utilization 0.9`
    """
    from cartridge_core.serving.engine_options import EngineConfig, engine_command

    config = config_of(EngineConfig, host=host, port=port, cache_bytes=cache_bytes)
    command = engine_command(Settings(), config, model, context.args)
    if dry_run:
        sys.stdout.write((json.dumps({"command": command}) if as_json else shlex.join(command)) + "\n")
        return
    sys.stdout.flush()
    # In its place: signals, logs and the exit code are vLLM's own.
    os.execv(command[0], command)
