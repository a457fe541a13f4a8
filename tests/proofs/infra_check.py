"""`make infra-check`: the tools that operators use, asked about our files. `make test` asks Python packages instead.

Compose (`docker compose`, or Debian's `docker-compose`) reads the compose file in both profiles, kubectl renders both
overlays to what the tests render, promtool checks Prometheus's configuration. A tool that is not there is a failure.
"""

import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from cartridge_core.proof import write_proof
from tests.compose_file import ROOT, example_variables, services
from tests.infra.kustomization import Key, Manifest, render

OVERLAYS = ("cpu", "gpu")
ASKED = {
    **{f"compose_services_{profile}": {"at_least": 1.0} for profile in OVERLAYS},
    **{f"kustomize_agrees_{overlay}": {"at_least": 1.0} for overlay in OVERLAYS},
    "prometheus_rules": {"at_least": 1.0},
    "missing_tools": {"at_most": 0.0},
}


def output(*command: str) -> str:
    """What a command prints.

    Raises:
        RuntimeError: It failed.
    """
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def compose_command() -> list[str] | None:
    """Compose's command here; None where there is none."""
    if shutil.which("docker") and not subprocess.run(["docker", "compose", "version"], capture_output=True).returncode:
        return ["docker", "compose"]
    return ["docker-compose"] if shutil.which("docker-compose") else None


def composed(command: list[str], profile: str, folder: Path) -> float:
    """Number of services that Compose would start, 0 where they are not those that the tests see."""
    variables = example_variables() | {"COMPOSE_PROFILES": profile}
    env_file = folder / "env"
    env_file.write_text("".join(f"{name}={value}\n" for name, value in variables.items()), encoding="utf-8")
    file = ["--file", str(ROOT / "docker-compose.yml"), "--project-directory", str(ROOT)]
    listed = output(*command, *file, "--env-file", str(env_file), "--profile", profile, "config", "--services")
    expected = {name for name, service in services(variables).items() if service.runs_in(profile)}
    # The first version of Compose lists the services of every profile.
    named = set(listed.split()) if command[0] == "docker" else set(listed.split()) & expected
    return float(len(named)) if named == expected else 0.0


def rendered_alike(overlay: str) -> float:
    """1 where kubectl renders an overlay to the same manifests as the tests do."""
    folder = ROOT / "infra/kubernetes/overlays" / overlay
    theirs: dict[Key, Manifest] = {
        (manifest["kind"], manifest["metadata"]["name"]): manifest
        for manifest in yaml.safe_load_all(output("kubectl", "kustomize", str(folder)))
    }
    return float(theirs == render(folder))


def checked_rules(folder: Path) -> float:
    """Number of rules that promtool finds in Prometheus's configuration."""
    key = folder / "key"
    key.write_text("key", encoding="utf-8")
    for source in (ROOT / "infra/prometheus").glob("*.yml"):
        text = source.read_text(encoding="utf-8").replace("/keys/prometheus", str(key))
        (folder / source.name).write_text(text, encoding="utf-8")
    said = output("promtool", "check", "config", str(folder / "prometheus.yml"))
    found = re.search(r"SUCCESS: (\d+) rules? found", said)
    return float(found[1]) if found else 0.0


def main() -> int:
    """Run every check; 1 where one failed or could not be made."""
    began, figures, problems = time.time(), {"missing_tools": 0.0}, []
    compose = compose_command()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checks = [
            *((f"compose_services_{p}", compose, lambda p=p: composed(compose or [], p, folder)) for p in OVERLAYS),
            *((f"kustomize_agrees_{o}", shutil.which("kubectl"), lambda o=o: rendered_alike(o)) for o in OVERLAYS),
            ("prometheus_rules", shutil.which("promtool"), lambda: checked_rules(folder)),
        ]
        for figure, tool, check in checks:
            if not tool:
                figures["missing_tools"] += 1
                problems.append(f"{figure}: install docker-compose, kubectl and prometheus (for promtool).")
                continue
            try:
                figures[figure] = check()
            except RuntimeError as error:
                problems.append(str(error))
    for problem in problems:
        sys.stderr.write(problem + "\n")
    proof = write_proof("infra-check", "make infra-check", figures, ASKED, began, extra={"problems": list(problems)})
    return 0 if proof.ok else 1


if __name__ == "__main__":
    sys.exit(main())
