"""The services of docker-compose.yml on this machine: same commands and variables, hosts and ports mapped to loopback.

PostgreSQL comes from the system's packages. S3 is moto's server, which keeps objects in memory: it is the one service
that a restart of the stack leaves running.
"""

import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from tests.compose_file import ROOT, Service, example_variables, secret_names, services
from tests.native_process import NativeProcess, StackError, run_job
from tests.ports import free_port
from tests.vllm_server import ENVIRONMENT

PORTS = {
    "postgres": 5432,
    "s3": 8333,
    "mlflow": 5000,
    "prefect": 4200,
    "gateway": 8000,
    "vllm": 8001,
    "prometheus": 9090,
}
"""Port of each host name in its container."""
"""Where `make vllm-setup` puts vLLM's own environment."""
WORKER_PORT = 8080
"""Where every worker answers its health check, in its own container."""
_AS_THEY_ARE = frozenset({"MLFLOW_SERVER_ALLOWED_HOSTS"})
"""Variables that must hold under the names of the compose file."""
_DEBIAN = Path("/usr/lib/postgresql/15/bin")


class NativeStack:
    """The stack of one profile.

    Args:
        state: Empty folder for volumes, logs and homes.
        documents: What flows see as /documents.
        profile: `cpu`, or `gpu`: the gateway in front of vLLM, everything on this machine's CPU.
    """

    def __init__(self, state: Path, documents: Path, profile: str) -> None:
        self.state = state
        self.gateway, self.trainer = (
            ("gateway-vllm", "worker-gpu") if profile == "gpu" else ("gateway", "worker-gpu-on-cpu")
        )
        self.variables = example_variables() | {name: secrets.token_hex(20) for name in secret_names()}
        # On a CPU it is a share of the host's memory.
        self.variables |= {"DOCUMENTS": str(documents), "VLLM_GPU_SHARE": "0.2"}
        self.services = {name: one for name, one in services(self.variables).items() if one.runs_in(profile)}
        self.ports = {name: free_port() for name in PORTS}
        self._own_ports = {name: free_port() for name in self.services}
        self.running: dict[str, NativeProcess] = {}
        for folder in ("logs", "homes", "volumes", "configurations"):
            (state / folder).mkdir(parents=True, exist_ok=True)
        state.chmod(0o755)

    def url(self, name: str) -> str:
        """Where a service answers on this machine."""
        return f"http://127.0.0.1:{self.ports[name]}"

    def environment(self, name: str) -> dict[str, str]:
        """What a container of the service would see, mapped; nothing of this process but where its Python is."""
        service = self.services[name]
        home = self.state / "homes" / name
        home.mkdir(exist_ok=True)
        mapped = {
            key: value if key in _AS_THEY_ARE else self._mapped(value, service)
            for key, value in service.environment.items()
        }
        return {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "HOME": str(home),
            "LANG": "C.UTF-8",
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
        } | mapped

    def start(self, name: str, seconds: float = 180) -> float:
        """Start a service by its declared command and wait for its declared health check; returns the seconds."""
        service = self.services[name]
        process = NativeProcess(
            name=name,
            command=self._command(service),
            environment=self.environment(name),
            folder=ROOT,
            log=self.log(name),
            health=[self._mapped(word, service) for word in service.health],
        )
        return self._started(process, seconds)

    def check_environments(self) -> None:
        """Refuse to begin what could not be ended.

        Raises:
            StackError: vLLM's environment is wanted and not there.
        """
        if "vllm" in self.services and not (ENVIRONMENT / "bin" / "cartridge").exists():
            raise StackError(f"{ENVIRONMENT} is not there: make vllm-setup")

    def start_vllm(self, seconds: float = 600) -> float:
        """vLLM in its own environment, with what it needs to run on a CPU."""
        service = self.services["vllm"]
        environment = self.environment("vllm")
        environment |= {
            "PATH": f"{ENVIRONMENT}/bin{os.pathsep}{environment['PATH']}",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "HF_HUB_OFFLINE": "1",
        }
        command = [*self._command(service), "--block-size", "32", "--max-model-len", "4096"]
        health = [self._mapped(word, service) for word in service.health]
        return self._started(NativeProcess("vllm", command, environment, ROOT, self.log("vllm"), health), seconds)

    def superuser(self) -> dict[str, str]:
        """Variables with which PostgreSQL's own programs reach it, as inside its container."""
        where = {"PGHOST": "127.0.0.1", "PGPORT": str(self.ports["postgres"]), "PGUSER": "postgres"}
        password = self.services["postgres"].environment["POSTGRES_PASSWORD"]
        return (
            {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "HOME": str(self.state)} | where | {"PGPASSWORD": password}
        )

    def forget_volume(self, name: str) -> None:
        """Empty a named volume."""
        shutil.rmtree(self.state / "volumes" / name)

    def start_postgres(self) -> float:
        """PostgreSQL on the declared volume; made by the declared script the first time."""
        binaries = _DEBIAN if _DEBIAN.is_dir() else Path(shutil.which("initdb") or "/nowhere").parent
        if not (binaries / "initdb").exists() or not shutil.which("psql"):
            raise StackError("PostgreSQL is not installed: apt-get install -y postgresql postgresql-contrib")
        service = self.services["postgres"]
        data = self._host_path(service, "/var/lib/postgresql/data")
        port, fresh = self.ports["postgres"], not (data / "PG_VERSION").exists()
        # The server refuses to run as root.
        who = ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups", "--"] if os.getuid() == 0 else []
        if who:
            shutil.chown(data, "postgres")
        data.chmod(0o700)
        base = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "HOME": str(self.state)}
        if fresh:
            password = self.state / "password"
            password.write_text(service.environment["POSTGRES_PASSWORD"], encoding="utf-8")
            if who:
                shutil.chown(password, "postgres")
            command = [*who, str(binaries / "initdb"), "-D", str(data), "-U", "postgres", "--auth=scram-sha-256"]
            run_job("initdb", [*command, f"--pwfile={password}"], base, self.state, self.log("postgres"))
            password.unlink()
        listening = ["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=", "-p", str(port)]
        command = [*who, str(binaries / "postgres"), "-D", str(data), *listening]
        health = [*(self._mapped(word, service) for word in service.health), f"--port={port}"]
        # As the image says it: a fast shutdown, which does not wait for clients.
        server = NativeProcess("postgres", command, base, Path("/"), self.log("postgres"), health, signal.SIGINT)
        seconds = self._started(server, 60)
        if fresh:
            script = self._host_path(service, "/docker-entrypoint-initdb.d/init.sh")
            run_job(
                "init.sh", ["sh", str(script)], self.superuser() | dict(service.environment), ROOT, self.log("postgres")
            )
        return seconds

    def start_s3(self) -> float:
        """moto's server in the place of the declared one."""
        port = str(self.ports["s3"])
        command = [str(Path(sys.executable).with_name("moto_server")), "-H", "127.0.0.1", "-p", port]
        answers = f"import urllib.request as u; u.urlopen('http://127.0.0.1:{port}/moto-api/', timeout=5)"
        return self._started(
            NativeProcess("s3", command, dict(os.environ), self.state, self.log("s3"), [sys.executable, "-c", answers]),
            60,
        )

    def start_prometheus(self, binary: str) -> float:
        """Prometheus with our configuration, mapped."""
        folder = self.state / "prometheus"
        folder.mkdir(exist_ok=True)
        for source in (ROOT / "infra/prometheus").iterdir():
            text = self._mapped(source.read_text(encoding="utf-8"), self.services["prometheus"])
            (folder / source.name).write_text(text, encoding="utf-8")
        port = self.ports["prometheus"]
        command = [binary, f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
        answers = f"import urllib.request as u; u.urlopen('http://127.0.0.1:{port}/-/healthy', timeout=5)"
        return self._started(
            NativeProcess(
                "prometheus",
                [*command, f"--web.listen-address=127.0.0.1:{port}"],
                dict(os.environ),
                folder,
                self.log("prometheus"),
                [sys.executable, "-c", answers],
            ),
            60,
        )

    def job(self, name: str) -> str:
        """Run a one-shot service to its end."""
        return self.run_in(name, *self._command(self.services[name]))

    def run_in(self, name: str, *command: str) -> str:
        """What `docker compose exec NAME COMMAND` would run; returns what it printed."""
        mapped = [self._mapped(word, self.services[name]) for word in command]
        return run_job(" ".join(command[:3]), mapped, self.environment(name), ROOT, self.log(name))

    def stop(self, keep: Iterable[str] = ()) -> None:
        """Stop the services, the last started first."""
        for name in [name for name in reversed(self.running) if name not in keep]:
            self.running.pop(name).stop()

    def log(self, name: str) -> Path:
        """Where a service's output goes."""
        return self.state / "logs" / f"{name}.log"

    def run_job(self, name: str, *command: str) -> None:
        """Run one of PostgreSQL's programs to its end."""
        run_job(name, command, self.superuser(), self.state, self.log("postgres"))

    def host_path(self, name: str, path: str) -> Path:
        """Where a path inside a service's container lies on this machine."""
        return Path(self._mapped(path, self.services[name]))

    def _started(self, process: NativeProcess, seconds: float) -> float:
        self.running[process.name] = process
        process.start()
        return process.wait_healthy(seconds)

    def _command(self, service: Service) -> list[str]:
        return [self._mapped(word, service) for word in service.command]

    def _host_path(self, service: Service, path: str) -> Path:
        source = service.volumes[path]
        if source.startswith(("/", ".")):
            return (ROOT / source).resolve()
        volume = self.state / "volumes" / source
        volume.mkdir(exist_ok=True)
        return volume

    def _mapped(self, text: str, service: Service) -> str:
        if text.startswith("infra/") and text.endswith(".toml"):
            copy = self.state / "configurations" / Path(text).name
            copy.write_text(self._mapped((ROOT / text).read_text(encoding="utf-8"), service), encoding="utf-8")
            return str(copy)
        for path in service.volumes:
            whole = rf"(?<![\w/.-]){re.escape(path)}(?![\w.-])"
            text = re.sub(whole, str(self._host_path(service, path)), text)
        for name, port in PORTS.items():
            for host in (name, "127.0.0.1"):
                text = text.replace(f"{host}:{port}", f"127.0.0.1:{self.ports[name]}")
            if text == str(port):
                return str(self.ports[name])
        text = text.replace(f"127.0.0.1:{WORKER_PORT}", f"127.0.0.1:{self._own_ports[service.name]}")
        if text == str(WORKER_PORT):
            return str(self._own_ports[service.name])
        return "127.0.0.1" if text == "0.0.0.0" else text


def version_of(*command: str) -> str:
    """First line of what a program says of itself."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return (done.stdout or done.stderr).splitlines()[0]
