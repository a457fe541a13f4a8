"""What a built image weighs and holds, seen from outside: no container runs."""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.proofs.container_engine import ContainerEngine

OURS = ("app", "home", "opt", "root", "src", "tmp", "wheels", "keys", "var/lib/cartridge", "var/lib/prefect")
"""Folders that our instructions fill; the rest is the base's."""
STRAYS = frozenset({".cache", ".env", ".git", ".netrc", "pip.conf", "node_modules", "proofs"})
"""Names of what is needed to build or to test, never to run."""
SECRETS = re.compile(r"\w*(?:PASSWORD|SECRET|TOKEN|API_KEY|ACCESS_KEY)\w*=[^\s\"$]+|\w+://[^/\s\":@]+:[^/\s\"@]+@")
"""A variable with a value, or an address with a password."""


@dataclass(frozen=True)
class BuiltImage:
    """One image."""

    engine: ContainerEngine
    name: str
    base: str
    """The image that it was built on."""

    def megabytes(self) -> float:
        """What our instructions add to the base, unpacked."""
        return float(self.engine.image(self.name)["Size"] - self.engine.image(self.base)["Size"]) / 1e6

    def secrets(self, known: tuple[str, ...]) -> tuple[str, ...]:
        """Known secrets, and what looks like one, in its history and its configuration."""
        history = self.engine.podman("history", "--no-trunc", "--format", "json", self.name)
        said = history + json.dumps(self.engine.image(self.name))
        return (*(word for word in known if word in said), *SECRETS.findall(said))

    def strays(self) -> tuple[str, ...]:
        """Paths that have no place in it."""
        with self.engine.files(self.name) as root:
            return tuple(sorted(str(path.relative_to(root)) for path in _strays(root)))

    def heaviest(self, number: int = 8) -> dict[str, int]:
        """Its largest Python packages, in megabytes."""
        with self.engine.files(self.name) as root:
            packages = {
                package.name: sum(file.lstat().st_size for file in package.rglob("*") if not file.is_dir())
                for folder in root.glob("opt/*/lib/python3*/site-packages")
                for package in folder.iterdir()
            }
        largest = sorted(packages, key=lambda name: -packages[name])[:number]
        return {name: round(packages[name] / 1e6) for name in largest}


def _strays(root: Path) -> Iterator[Path]:
    for top in OURS:
        for folder, folders, files in os.walk(root / top):
            here = Path(folder)
            named = (here / name for name in (*folders, *files) if name in STRAYS or name.endswith(".whl"))
            # An empty file is where something was mounted during the build.
            yield from (path for path in named if path.lstat().st_size)
            # What somebody else installed is theirs.
            folders[:] = [name for name in folders if name != "site-packages"]
