"""The house: imports flow one way, the library is light to import, files stay small."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CORE = ROOT / "cartridge_core"

# fmt: off
RANKS = (
    "errors", "digest", "atomic_file", "progress", "settings", "storage",
    "corpus", "manifest", "prefix_kv", "quantization", "stored_tensors", "tensor_stream", "cartridge", "positions",
    "compose", "architectures", "attention", "identity", "model_files", "models", "prompts", "chat_format",
    "rendering", "exchange", "inference", "teacher", "selfstudy", "dataset", "initialization",
    "training", "benchmarks", "baselines", "evaluation", "report", "proof",
    "registry", "catalog", "publishing", "reference", "stages", "serving",
    "cli",
)
# fmt: on
"""Order of docs/architecture.md: a module imports only from modules named before its own."""

HEAVY = ("torch", "transformers", "prefect", "mlflow", "matplotlib", "vllm", "fastapi", "peft")
MAX_LINES = 400


def python_files(*folders: str) -> list[Path]:
    return sorted(
        path for folder in folders for path in (ROOT / folder).rglob("*.py") if "__pycache__" not in path.parts
    )


def unit(path: Path) -> str:
    """The ranked name a file of the core belongs to: its package, or its module."""
    first = path.relative_to(CORE).parts[0]
    return first.removesuffix(".py")


def imported_units(source: str) -> set[str]:
    """Ranked names of the core that a source text imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide what is imported"
            base = node.module or ""
            names = [f"{base}.{alias.name}" for alias in node.names] if base == "cartridge_core" else [base]
        for name in names:
            parts = name.split(".")
            if parts[0] == "cartridge_core" and len(parts) > 1:
                found.add(parts[1])
    return found - {"__version__"}


def upward_imports(importer: str, imported: set[str]) -> set[str]:
    """Imported names that do not stand before the importer."""
    return {name for name in imported if name != importer and RANKS.index(name) >= RANKS.index(importer)}


def test_every_module_has_a_rank() -> None:
    units = {unit(path) for path in python_files("cartridge_core")} - {"__init__", "__main__"}
    assert units <= set(RANKS)


@pytest.mark.parametrize("path", python_files("cartridge_core"), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_flow_one_way(path: Path) -> None:
    name = unit(path)
    imported = imported_units(path.read_text(encoding="utf-8"))
    if name == "__init__":
        assert not imported
        return
    assert not upward_imports(name, imported), f"{path.relative_to(ROOT)} imports what stands after {name}"


def test_the_walk_sees_an_upward_import() -> None:
    for source in (
        "import cartridge_core.stages.store",
        "from cartridge_core import cli",
        "def f():\n  from cartridge_core.cli import main",
    ):
        assert upward_imports("errors", imported_units(source))


def test_the_core_never_imports_flows_or_prefect() -> None:
    for path in python_files("cartridge_core"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {module.split(".")[0] for module in modules} & {"flows", "prefect"}, path


def test_flows_keep_their_annotations() -> None:
    for path in python_files("flows"):
        assert "from __future__ import annotations\n" not in path.read_text(encoding="utf-8"), path


@pytest.mark.parametrize("module", ["cartridge_core", "cartridge_core.cli.main", "flows.commands"])
def test_import_is_light(module: str) -> None:
    code = f"import sys, {module}; print(*sorted(m for m in {HEAVY!r} if m in sys.modules))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert answer.stdout.split() == []


def test_files_stay_small() -> None:
    sizes = {
        p: len(p.read_text(encoding="utf-8").splitlines())
        for p in python_files("cartridge_core", "flows", "migrations", "tests")
    }
    assert {str(p.relative_to(ROOT)): n for p, n in sizes.items() if n > MAX_LINES} == {}
    library = sorted(n for p, n in sizes.items() if p.is_relative_to(CORE) and n)
    assert library[len(library) // 2] <= 150
