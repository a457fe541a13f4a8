import io
import json
import math
import subprocess
import time
from pathlib import Path

import pytest
from pydantic import ValidationError
from rich.console import Console

from cartridge_core import proof as proofs
from cartridge_core.errors import EvaluationError
from cartridge_core.proof import Bound, Proof, write_proof


def write(tmp_path: Path, figures: dict[str, float], asked: dict[str, dict[str, float]], **more: object) -> Proof:
    console = Console(file=io.StringIO(), width=100)
    started = time.time() - 90
    return write_proof(
        "quickstart", "make quickstart", figures, asked, started, folder=tmp_path, console=console, **more
    )  # type: ignore[arg-type]


def test_the_file_has_the_agreed_form(tmp_path: Path) -> None:
    asked = {"icl_accuracy": {"at_least": 0.9}, "seconds": {"at_most": 480.0}}
    proof = write(tmp_path, {"icl_accuracy": 0.938, "seconds": 301, "n": 240}, asked)
    content = json.loads((tmp_path / "quickstart.json").read_text())
    assert list(content) == ["target", "command", "commit", "hardware", "seconds", "figures", "asked", "ok"]
    assert content["asked"] == asked
    assert content["figures"] == {"icl_accuracy": 0.938, "seconds": 301, "n": 240}
    assert content["ok"] is proof.ok is True
    assert 90 <= content["seconds"] < 100
    assert content["hardware"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["quickstart.json"]


@pytest.mark.parametrize(
    ("figure", "bound", "ok"),
    [
        (0.95, {"at_least": 0.95}, True),
        (0.9499, {"at_least": 0.95}, False),
        (480.0, {"at_most": 480.0}, True),
        (480.1, {"at_most": 480.0}, False),
        (5.0, {"at_least": 1.0, "at_most": 4.0}, False),
        (math.nan, {"at_least": 0.0}, False),
        (math.inf, {"at_least": 0.0}, False),
    ],
)
def test_ok_means_that_every_bound_holds(tmp_path: Path, figure: float, bound: dict[str, float], ok: bool) -> None:
    assert write(tmp_path, {"x": figure}, {"x": bound}).ok is ok


def test_a_figure_that_was_not_measured_fails(tmp_path: Path) -> None:
    proof = write(tmp_path, {"x": 1.0}, {"x": {"at_least": 0.5}, "y": {"at_least": 0.5}})
    assert not proof.ok
    assert proof.failures() == ("y",)


def test_extra_stands_beside_the_figures(tmp_path: Path) -> None:
    write(tmp_path, {}, {}, extra={"model_version": 3, "seconds_by_stage": {"study": 61.5}})
    content = json.loads((tmp_path / "quickstart.json").read_text())
    assert content["extra"] == {"model_version": 3, "seconds_by_stage": {"study": 61.5}}


def test_the_table_sets_asked_against_seen(tmp_path: Path) -> None:
    stream = io.StringIO()
    write_proof(
        "bench-kv",
        "make bench-kv",
        {"ratio": 38.59, "tokens": 3710},
        {"ratio": {"at_least": 38.6}, "share": {"at_least": 0.95, "at_most": 1.2}},
        time.time(),
        folder=tmp_path,
        console=Console(file=stream, width=100),
    )
    lines = stream.getvalue().splitlines()
    assert any("bench-kv" in line and "not ok" in line for line in lines)
    assert any(all(part in line for part in ("ratio", "≥ 38.6", "38.59", "✗")) for line in lines)
    assert any(all(part in line for part in ("share", "≥ 0.95, ≤ 1.2", "not measured", "✗")) for line in lines)
    assert any("3,710" in line and "✗" not in line and "✓" not in line for line in lines)


def test_what_asks_nothing_or_something_unknown_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="Nothing is asked of x"):
        write(tmp_path, {"x": 1.0}, {"x": {}})
    with pytest.raises(ValidationError):
        Bound.model_validate({"at_lest": 1.0})
    with pytest.raises(ValidationError):
        write_proof("../escape", "x", {}, {}, time.time(), folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_commit_is_that_of_the_checkout_the_code_runs_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> str:
        who = ("-c", "user.name=a", "-c", "user.email=a@b")
        done = subprocess.run(
            ["git", "-C", str(tmp_path), *who, *arguments], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    code = tmp_path / "proof.py"
    code.write_text("one")
    monkeypatch.setattr(proofs, "__file__", str(code))
    git("init", "-q")
    assert proofs.commit() == "unknown"
    git("add", "proof.py")
    git("commit", "-q", "-m", "one")
    assert proofs.commit() == git("rev-parse", "HEAD")
    (tmp_path / "untracked").write_text("")
    assert proofs.commit() == git("rev-parse", "HEAD")
    code.write_text("two")
    assert proofs.commit() == git("rev-parse", "HEAD") + "-dirty"
    # An installed copy inside somebody's checkout is not that checkout's code.
    (tmp_path / "site").mkdir()
    monkeypatch.setattr(proofs, "__file__", str(tmp_path / "site" / "proof.py"))
    assert proofs.commit() == "unknown"
