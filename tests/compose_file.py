"""The compose file as its readers see it: variables filled in, services with what their images say."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
COMPOSE_FILE = ROOT / "docker-compose.yml"
EXAMPLE = ROOT / ".env.example"

_VARIABLE = re.compile(r"\$\{(?P<name>\w+)(?:(?P<rule>:?[-?])(?P<word>[^}]*))?\}")
_INSTRUCTION = re.compile(r"^(?P<name>[A-Z]+)\s+(?P<rest>.*)$")


@dataclass(frozen=True)
class Service:
    """What a container of a service would run, and in which surroundings."""

    name: str
    """The service, and its host name on the stack's networks."""
    declared: Mapping[str, Any]
    """All that the file says of it, anchors and variables resolved."""
    command: tuple[str, ...]
    """Its own command, else the image's; empty for images that are not ours."""
    environment: Mapping[str, str]
    """The image's variables and above them the service's."""
    health: tuple[str, ...]
    """Health check, the service's or the image's, as an argument list; empty for none."""
    volumes: Mapping[str, str]
    """Path in the container to a named volume, or to a path of the host (`./...`, `/...`)."""
    profiles: frozenset[str]
    """Profiles that it belongs to; none means all."""

    def runs_in(self, profile: str) -> bool:
        """Whether it is started with that profile."""
        return not self.profiles or profile in self.profiles


def example_variables() -> dict[str, str]:
    """What .env.example says, with a value for every secret."""
    lines = (line for line in EXAMPLE.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#"))
    found = dict(line.split("=", 1) for line in lines)
    return {name: value or ("x" * 40 if name in secret_names() else "") for name, value in found.items()}


def secret_names() -> tuple[str, ...]:
    """Variables below the heading "Secrets" of .env.example."""
    section = EXAMPLE.read_text(encoding="utf-8").split("# --- Secrets", 1)[1].split("# --- ", 1)[0]
    return tuple(re.findall(r"^(\w+)=", section, flags=re.MULTILINE))


def read_compose(variables: Mapping[str, str]) -> dict[str, Any]:
    """The file with its variables filled in.

    Raises:
        ValueError: One that must be set (`${NAME:?why}`) is not.
    """
    content: dict[str, Any] = yaml.safe_load(COMPOSE_FILE.read_text(encoding="utf-8"))
    return {key: _filled_in(part, variables) for key, part in content.items()}


def services(variables: Mapping[str, str]) -> dict[str, Service]:
    """Every service, by name."""
    return {name: _service(name, declared) for name, declared in read_compose(variables)["services"].items()}


def image_facts(dockerfile: Path) -> tuple[dict[str, str], tuple[str, ...], tuple[str, ...]]:
    """What the last stage of a Dockerfile says: ENV without PATH, HEALTHCHECK's and CMD's argument lists."""
    text = re.sub(r"\\\n\s*", "", dockerfile.read_text(encoding="utf-8"))
    last = text[text.rindex("\nFROM ") :]
    environment: dict[str, str] = {}
    health: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    for line in last.splitlines():
        found = _INSTRUCTION.match(line)
        if found is None:
            continue
        name, rest = found.groups()
        if name == "ENV":
            environment |= dict(pair.split("=", 1) for pair in rest.split())
        elif name == "HEALTHCHECK":
            health = tuple(json.loads(rest[rest.index("CMD") + 3 :]))
        elif name == "CMD":
            command = tuple(json.loads(rest))
    environment.pop("PATH", None)
    return environment, health, command


def _service(name: str, declared: dict[str, Any]) -> Service:
    environment: dict[str, str] = {}
    health: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    if "build" in declared:
        environment, health, command = image_facts(ROOT / declared["build"]["dockerfile"])
    environment |= {key: str(value) for key, value in declared.get("environment", {}).items()}
    check = declared.get("healthcheck", {})
    if check.get("disable"):
        health = ()
    elif "test" in check:
        health = tuple(check["test"][1:])
    volumes = dict(reversed(entry.split(":")[:2]) for entry in declared.get("volumes", ()))
    return Service(
        name=name,
        declared=declared,
        command=tuple(map(str, declared.get("command", command))),
        environment=environment,
        health=health,
        volumes=volumes,
        profiles=frozenset(declared.get("profiles", ())),
    )


def _filled_in(part: Any, variables: Mapping[str, str]) -> Any:
    """Variables are filled into texts after YAML was read, as Compose does: an empty one is an empty text."""
    if isinstance(part, dict):
        return {key: _filled_in(value, variables) for key, value in part.items()}
    if isinstance(part, list):
        return [_filled_in(value, variables) for value in part]
    return _VARIABLE.sub(lambda match: _value(match, variables), part) if isinstance(part, str) else part


def _value(match: re.Match[str], variables: Mapping[str, str]) -> str:
    name, rule, word = match["name"], match["rule"] or "", match["word"] or ""
    found = variables.get(name)
    if found or (found is not None and not rule.startswith(":")):
        return found
    if rule.endswith("?"):
        raise ValueError(f"{name} is not set: {word}.")
    return word
