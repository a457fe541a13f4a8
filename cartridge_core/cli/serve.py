"""`cartridge serve`: the gateway, with an engine in the same process or vLLM servers behind it."""

import json
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from cartridge_core.cli.console import JsonOption, output
from cartridge_core.cli.options import Model
from cartridge_core.settings import Settings
from cartridge_core.stages.config import config_of


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on. Default: 127.0.0.1.")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 takes a free one. Default: 8000.")] = None,
    model: Model = None,
    fallback: Annotated[
        Literal["refuse", "icl", "none"] | None,
        typer.Option(
            help="Where a Cartridge cannot be served: refuse, put the corpus in the prompt, or answer without."
        ),
    ] = None,
    vllm: Annotated[
        list[str] | None,
        typer.Option(
            help="Address of a server that `cartridge engine` started; may be given several times. "
            "Default: an engine in this process."
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="TOML file with fields of GatewayConfig; options win over it.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Answer OpenAI's API through the promoted Cartridges. Ctrl-C lets answers end first, a second one does not.

    Requests are logged to standard error as JSON, one a line.

    Example: `cartridge serve --port 8000 --vllm http://127.0.0.1:8001`
    """
    from cartridge_core.serving.config import GatewayConfig

    gateway_config = config_of(GatewayConfig, config, host=host, port=port, fallback=fallback, vllm_urls=vllm or None)
    # Torch takes seconds to import; a wrong word is told before.
    from cartridge_core.serving.server import serve as serve_gateway

    def listening(url: str) -> None:
        if as_json:
            sys.stdout.write(json.dumps({"url": url}) + "\n")
        else:
            output().print(f"Listening on {url} (a page to try it), OpenAI's API at {url}/v1")
        sys.stdout.flush()

    serve_gateway(Settings(), gateway_config, model, listening)
