"""The command line as a user meets it: the whole chain with `--json`, and what it says when something is wrong."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner, Result

from cartridge_core.cli.main import app
from tests.talkative import Workplace

COMMANDS = [
    "audit",
    "catalog roles",
    "catalog upgrade",
    "corpus add",
    "corpus forget",
    "corpus list",
    "corpus remove",
    "corpus show",
    "synthesize",
    "train",
    "learn-start",
    "starts",
    "evaluate",
    "compose",
    "register",
    "promote",
    "rollback",
    "retire",
    "delete",
    "doctor",
    "gc",
    "export",
    "import",
    "list",
    "show",
    "ask",
    "serve",
    "engine",
    "key create",
    "key list",
    "key revoke",
    "build",
    "quickstart",
    "reap",
    "reference evaluate",
    "reference learn-start",
]


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def answer(*arguments: str | Path) -> Any:
    """What a command prints with `--json`; it must succeed and print nothing else on standard output."""
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def refusal(*arguments: str | Path) -> str:
    """The sentence of a command that fails."""
    result = run(*arguments)
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    assert result.stdout == ""
    return result.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_help_holds_an_example_and_json(command: str) -> None:
    text = run(*command.split(), "--help").stdout
    assert re.search(rf"Example:\s+cartridge {command}", text), text
    assert "--json" in text


def test_no_command_is_left_out_of_these_tests() -> None:
    def names(group: Any, before: str = "") -> Iterator[str]:
        for name, command in group.commands.items():
            if hasattr(command, "commands"):
                yield from names(command, f"{name} ")
            else:
                yield before + name

    assert sorted(names(get_command(app))) == sorted(COMMANDS)


def test_version() -> None:
    assert run("--version").stdout.startswith("cartridge 0.")


def test_the_chain(workplace: Workplace, tmp_path: Path) -> None:
    corpus = answer("corpus", "add", "wards", workplace.documents)
    assert corpus["num_documents"] == 3
    assert answer("corpus", "add", "wards", workplace.documents)["cached"]
    assert [c["digest"] for c in answer("corpus", "list")] == [corpus["digest"]]
    assert "no alias 'champion'" in refusal("ask", "wards", "Who?")

    dataset = answer("synthesize", "wards", "--config", workplace.study_file, "--questions", workplace.questions)
    assert dataset["num_conversations"] > 0
    training = tmp_path / "train.toml"
    training.write_text("num_tokens = 24\nwarmup_steps = 1\nbatch_size = 4\neval_every = 2\n", encoding="utf-8")
    cartridge = answer("train", "wards", "--config", training, "--steps", "4")
    assert cartridge["num_tokens"] == 24
    assert Path(cartridge["curve"]).is_file()
    assert "never graded" in promote_ungraded()
    report = answer("evaluate", "wards", "--questions", workplace.questions)
    assert report["cartridge"] == cartridge["digest"]
    assert {"icl_accuracy", "self_study_accuracy", "memory_ratio"} <= report["figures"].keys()

    entry = answer("register", "wards")
    assert (entry["digest"], entry["version"], entry["aliases"]) == (cartridge["digest"], 1, [])
    refused = run("promote", "wards", "1", "--min-share-of-icl", "0.95", "--min-questions", "1000", "--json")
    assert refused.exit_code == 1
    assert "asks for 1000" in " ".join(json.loads(refused.stdout)["reasons"])
    for field in ("min-share-of-icl", "min-score-without-icl", "min-questions", "max-error-share"):
        assert f"{field.replace('-', '_')}: Input should be" in refusal("promote", "wards", "1", f"--{field}", "-1")
    assert answer("promote", "wards", "1", "--force", "--reason", "test")["moved"]
    assert answer("list", "wards")[0]["aliases"] == ["champion"]
    assert answer("show", "wards")["champion_history"][0]["action"] == "promote"

    reply = answer("ask", "wards", "Which ward has patient 3?", "--max-new-tokens", "8")
    assert reply["cartridge"] == cartridge["digest"]
    exported = tmp_path / "wards.tar"
    answer("export", "wards", exported)
    assert "champion" in refusal("delete", "wards", "1")
    assert answer("delete", "wards", "1", "--force")["cleared_aliases"] == ["champion"]
    assert answer("list", "wards") == []
    assert "deleted" in refusal("import", "wards", exported)
    assert answer("import", "wards", exported, "--restore")["digest"] == cartridge["digest"]
    # The deletion cleared the alias, so what it pointed at before is where a rollback leads.
    assert answer("rollback", "wards")["moved"]
    assert "no earlier Cartridge" in refusal("rollback", "wards")


def promote_ungraded() -> str:
    """Register and promote what has no report yet."""
    assert answer("register", "wards")["score"] is None
    return refusal("promote", "wards")


def test_errors_are_one_sentence(workplace: Workplace, tmp_path: Path) -> None:
    assert "There is no corpus 'nope'" in refusal("corpus", "show", "nope")
    assert "cartridge corpus add nope" in refusal("train", "nope")
    assert "cannot be a corpus" in refusal("corpus", "add", "Bad_Name", workplace.documents)
    assert "nowhere" in refusal("corpus", "add", "empty", tmp_path / "nowhere")
    answer("corpus", "add", "wards", workplace.documents)
    assert "has not been studied" in refusal("train", "wards", "--tokens", "8")
    assert "num_conversations" in refusal("synthesize", "wards", "--num-conversations", "0")
    wrong = tmp_path / "wrong.toml"
    wrong.write_text("num_conversatons = 3\n", encoding="utf-8")
    assert "num_conversatons" in refusal("synthesize", "wards", "--config", wrong)


def test_text_output_is_for_people(workplace: Workplace) -> None:
    added = run("corpus", "add", "wards", workplace.documents)
    assert "Corpus wards" in added.stdout
    assert added.stderr == ""
    assert "already there" in run("corpus", "add", "wards", workplace.documents).stdout
    assert "wards" in run("corpus", "list").stdout


def test_a_missing_extra_is_named(workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    answer("corpus", "add", "wards", workplace.documents)

    def absent(*arguments: Any, **options: Any) -> None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr("cartridge_core.cli.making.study", absent)
    assert "pip install 'cartridge-foundry[train]'" in refusal("synthesize", "wards")
