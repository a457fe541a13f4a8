"""Services of docker-compose.yml as containers: their images, commands, variables, volumes, dropped rights and checks.

SQLite and folders take the place of PostgreSQL and S3. Their network is one loopback that they share, with no way out.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.compose_file import ROOT, Service, example_variables, image_facts, services
from tests.proofs.container_engine import KILLED, ContainerEngine

STOP_S = 30
"""Between SIGTERM and SIGKILL."""
REPLACED = {
    "CARTRIDGE_CATALOG_URL": None,
    "CARTRIDGE_ARTIFACT_ROOT": None,
    "CARTRIDGE_DEVICE": "cpu",
    "MLFLOW_BACKEND_STORE_URI": "sqlite:////home/mlflow/mlflow.db",
    "MLFLOW_ARTIFACTS_DESTINATION": "/home/mlflow/artifacts",
    "PREFECT_API_DATABASE_CONNECTION_URL": None,
}
"""Variables that name PostgreSQL, S3 or a GPU; None: the default, which lies below the service's home."""
ON_CPU = {
    "vllm": (("--block-size", "32", "--max-model-len", "4096", "--enforce-eager"), {"VLLM_CPU_KVCACHE_SPACE": "1"})
}
"""What vLLM needs on a CPU besides what is declared: options and variables."""
ASK = """
import json, sys, urllib.error, urllib.request
_, url, key, body = sys.argv
headers = {"content-type": "application/json"} | ({"authorization": "Bearer " + key} if key else {})
try:
    answer = urllib.request.urlopen(urllib.request.Request(url, body.encode() or None, headers), timeout=60)
except urllib.error.HTTPError as error:
    answer = error
print(json.dumps([answer.status, answer.read().decode()]))
"""


@dataclass
class ServiceContainers:
    """The services that run, each from its image."""

    engine: ContainerEngine
    logs: Path
    """Folder of one file a service, written when it stops."""
    running: list[str] = field(default_factory=list)
    # Where vLLM runs on a CPU, its share is one of the host's memory.
    declared: Mapping[str, Service] = field(
        default_factory=lambda: services(example_variables() | {"VLLM_GPU_SHARE": "0.2"})
    )

    def share_loopback(self, image: str) -> None:
        """Start the container whose network the others join: every service's name is the loopback's."""
        self._hosts.write_text(f"127.0.0.1 localhost {' '.join(self.declared)}\n", encoding="utf-8")
        self.engine.start("loopback", image, "--network", "none", command=("sleep", "infinity"))

    @property
    def _hosts(self) -> Path:
        return self.engine.state / "hosts"

    def start(self, name: str, seconds: float) -> float:
        """Start a service and wait for its health check; returns how long that took."""
        service, started = self.declared[name], time.monotonic()
        more, _ = ON_CPU.get(name, ((), {}))
        self.engine.start(name, _image(service), *self._options(service), command=(*service.command, *more))
        self.running.append(name)
        of_the_image = image_facts(ROOT / service.declared["build"]["dockerfile"])[1]
        self.engine.wait_healthy(name, () if service.health == of_the_image else service.health, seconds)
        return time.monotonic() - started

    def run_job(self, name: str) -> float:
        """Run a one-shot service to its end; returns how long that took."""
        service, started = self.declared[name], time.monotonic()
        log = self.logs / f"{name}.log"
        self.engine.run_job(name, _image(service), *self._options(service), command=service.command, log=log)
        return time.monotonic() - started

    def ask(self, name: str, url: str, key: str = "", body: str = "") -> tuple[int, str]:
        """Status and body of a request that is made inside a service's container."""
        status, text = json.loads(self.engine.execute(name, "python", "-c", ASK, url, key, body))
        return int(status), str(text)

    def user(self, name: str) -> int:
        """User id of the container's first process."""
        status = self.engine.execute(name, "cat", "/proc/1/status")
        return int(next(line for line in status.splitlines() if line.startswith("Uid:")).split()[1])

    def stop(self, name: str) -> tuple[float, bool]:
        """Stop a service and keep its log; returns how long that took, and whether it had to be killed."""
        self.running.remove(name)
        seconds, code = self.engine.stop(name, STOP_S)
        (self.logs / f"{name}.log").write_text(self.engine.tail(name, 5000), encoding="utf-8")
        return seconds, code == KILLED

    def _options(self, service: Service) -> list[str]:
        variables = {key: value for key, value in service.environment.items() if key not in REPLACED}
        variables |= {key: value for key, value in REPLACED.items() if value and key in service.environment}
        variables |= ON_CPU.get(service.name, ((), {}))[1]
        volumes = [f"{source}:{path}" for path, source in service.volumes.items() if not source.startswith(("/", "."))]
        memory = service.declared.get("shm_size")
        return [
            *(("--shm-size", memory) if memory else ()),
            *("--network", "container:loopback", "--volume", f"{self._hosts}:/etc/hosts:ro"),
            *(word for key, value in variables.items() for word in ("--env", f"{key}={value}")),
            *(word for volume in volumes for word in ("--volume", volume)),
            *(word for right in service.declared["cap_drop"] for word in ("--cap-drop", right)),
            *(word for rule in service.declared["security_opt"] for word in ("--security-opt", rule)),
        ]


def _image(service: Service) -> str:
    return f"localhost/{service.declared['image']}"
