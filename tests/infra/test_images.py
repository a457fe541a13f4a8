"""Dockerfiles: linted, pinned, without root, without secrets, with a health check; the versions that are tested."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.compose_file import ROOT, image_facts

DOCKERFILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
CONSTRAINTS = dict(
    line.split("==") for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if "==" in line
)


def each() -> pytest.MarkDecorator:
    return pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name.split(".")[0])


def test_there_is_one_for_each_image() -> None:
    names = {path.name.removesuffix(".Dockerfile") for path in DOCKERFILES}
    assert names == {"worker-cpu", "worker-gpu", "gateway", "vllm", "mlflow"}


@each()
def test_the_linter_has_nothing_to_say(dockerfile: Path) -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([str(hadolint), "--no-color", str(dockerfile)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@each()
def test_it_is_pinned_unprivileged_and_watched(dockerfile: Path) -> None:
    text = dockerfile.read_text(encoding="utf-8")
    stages = re.findall(r"^FROM (\S+)", text, flags=re.MULTILINE)
    assert len(stages) == 2, "building tools stay in the first stage"
    assert all(re.search(r":v?\d+\.\d+\.\d+", stage) for stage in stages), stages
    assert re.findall(r"^USER (\S+)", text, flags=re.MULTILINE) == ["1000"]
    _, health, command = image_facts(dockerfile)
    assert health and command
    assert not re.search(r"^(ENV|ARG).*(PASSWORD|SECRET|TOKEN|_KEY)", text, flags=re.MULTILINE)


@each()
def test_what_it_pins_by_hand_is_what_is_tested(dockerfile: Path) -> None:
    for name, version in re.findall(r"([a-z][\w-]+)==([\d.]+)", dockerfile.read_text(encoding="utf-8")):
        assert CONSTRAINTS[name] == version


def test_the_extras_are_there(pytestconfig: pytest.Config) -> None:
    import tomllib

    known = set(
        tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    )
    for dockerfile in DOCKERFILES:
        for extras in re.findall(r"'\.\[([\w,-]+)\]'", dockerfile.read_text(encoding="utf-8")):
            assert set(extras.split(",")) <= known, dockerfile.name


def test_secrets_and_history_stay_out_of_the_build() -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    assert not {"!.env", "!.git", "!.", "!*"} & set(rules)
    assert all((ROOT / rule[1:]).exists() for rule in rules if rule.startswith("!"))
