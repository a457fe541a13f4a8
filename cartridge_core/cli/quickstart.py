"""What the quickstart tells: the comparison, the answer, where to look next, and the proof."""

import shlex
import time
from pathlib import Path
from typing import Any

import typer
from rich.markup import escape

from cartridge_core.cli.console import facts, messages, output, show
from cartridge_core.proof import write_proof
from cartridge_core.settings import Settings
from cartridge_core.stages.quickstart import QuickstartResult


def report_quickstart(result: QuickstartResult, started: float, as_json: bool) -> None:
    """Print the result and write `build/reports/<target>.json`; exit code 1 where a figure falls short.

    Args:
        result: What the quickstart made.
        started: `time.time()` when the command began.
        as_json: Print one JSON object instead of tables.
    """
    settings = Settings()
    report = result.graded.load()
    stages = {"seconds_by_stage": result.seconds_by_stage, "cached": list(result.cached)}
    value: dict[str, Any] = {
        "corpus": result.corpus.name,
        "model_version": f"{result.registered.model_name} v{result.registered.version}",
        "artifact_digest": result.cartridge.digest,
        "report_digest": result.graded.digest,
        "promoted": not result.promotion.refused,
        "answer": result.answer.as_json(),
        **stages,
    }
    if not as_json:
        output().print(report.table())
        output().print(facts("Seconds by stage", _seconds(result)))
        output().print(f"\n[bold]Q[/] {escape(result.answer.question)}\n[bold]A[/] {escape(result.answer.text)}")
        output().print(facts("\nWhere to look next", _next(settings, result)))
    command = f"cartridge quickstart{' --long' if result.plan.target.endswith('-long') else ''}"
    proof = write_proof(
        result.plan.target,
        command,
        result.figures | {"seconds": round(time.time() - started, 1)},
        result.plan.asked,
        started,
        extra=value,
        console=messages() if as_json else output(),
    )
    if as_json:
        show(value | {"figures": proof.figures, "ok": proof.ok}, as_json)
    if not proof.ok:
        raise typer.Exit(1)


def _seconds(result: QuickstartResult) -> dict[str, str]:
    return {
        name: f"{seconds:.1f}" + (" (found finished)" if name in result.cached else "")
        for name, seconds in result.seconds_by_stage.items()
    }


def _next(settings: Settings, result: QuickstartResult) -> dict[str, str | Path]:
    refused, decision = result.promotion.refused, result.promotion.decision
    return {
        "MLflow": f"{result.registered.model_name} v{result.registered.version}: {_mlflow_command(settings)}",
        "promoted": f"no: {decision.sentence}" if refused and decision else "yes, as champion",
        "plot": _short(result.graded.plot),
        "report": _short(result.graded.product.directory / "report.json"),
        "loss curve": _short(result.cartridge.curve),
        "Cartridge": _short(result.cartridge.folder),
        "ask more": f'cartridge ask {result.corpus.name} "..."',
        "your documents": "cartridge build NAME PATH... --model ID_OR_PATH",
    }


def _mlflow_command(settings: Settings) -> str:
    uri = settings.mlflow_tracking_uri
    return f"open {uri}" if uri.startswith("http") else f"mlflow ui --backend-store-uri {shlex.quote(uri)}"


def _short(path: Path) -> Path:
    """The path as seen from the working directory, where it lies below it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
