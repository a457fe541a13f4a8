"""`make images-test`: podman builds the Dockerfiles and starts the services of docker-compose.yml from the images.

No registry is asked: a Debian made by debootstrap stands in for the official Python image, the same with vLLM for CPUs
for vLLM's. The bases are not those that users get, while every instruction of ours is run. Containers have no init
process, as on Kubernetes, so that each must hear SIGTERM itself, and no network but a loopback that they share: nothing
is fetched when they start.

Packages come from where pip's configuration says. What of it lies outside the build is named with --mount.
"""

import argparse
import json
import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from rich.console import Console

from cartridge_core.proof import FOLDER, Bound, write_proof
from tests.compose_file import ROOT
from tests.native_process import StackError
from tests.proofs.built_image import BuiltImage
from tests.proofs.container_engine import ContainerEngine
from tests.proofs.native_stack import version_of
from tests.proofs.service_containers import STOP_S, ServiceContainers
from tests.proofs.stand_in_base import base_name, make_base, make_vllm_base

STATE = Path("build/images")
"""Where podman keeps what it builds: about 10 GB. It may be removed at any time."""
INDEX = "file:///canary-of-the-index"
"""Build argument that must stay in the build; pip passes over a folder that is not there."""
IMAGES = {"mlflow": 1000.0, "worker-cpu": 2300.0, "gateway": 2100.0, "worker-gpu": 9000.0, "vllm": 100.0}
"""Dockerfile to the megabytes that it may add to its base."""
START_S = 300.0
"""Within which a service must be healthy."""
STEPS = ("mlflow", "prefect", "migrate", "deploy", "worker-cpu", "gateway")
"""Services and jobs, in the order of their dependencies."""
JOBS = ("migrate", "deploy")
SERVICES = (*(name for name in STEPS if name not in JOBS), "worker-gpu", "vllm")


def build(engine: ContainerEngine, name: str, options: Sequence[str], log: Path) -> BuiltImage:
    """Build the image of docker/NAME.Dockerfile, within half an hour."""
    dockerfile = ROOT / "docker" / f"{name}.Dockerfile"
    image = f"localhost/cartridge-foundry/{name}:dev"
    words = (*options, "--build-arg", f"PIP_EXTRA_INDEX_URL={INDEX}", "--file", str(dockerfile), "--tag", image)
    engine.podman("build", *words, str(ROOT), seconds=1800, log=log)
    return BuiltImage(engine, image, base_name(dockerfile))


def build_all(engine: ContainerEngine, mounts: Iterable[Path], logs: Path, say: Console) -> dict[str, BuiltImage]:
    """Make the bases and build on them."""
    python, vllm = (base_name(ROOT / "docker" / f"{name}.Dockerfile") for name in ("gateway", "vllm"))
    # The other format has no health checks.
    options = ["--format", "docker", "--layers", "--network", "host", "--pull-never"]
    options += [word for path in mounts for word in ("--volume", f"{path}:{path}:ro")]
    make_base(engine, python, logs / "base.log")
    make_vllm_base(engine, vllm, python, options, logs / "vllm-base.log")
    images = {}
    for name in IMAGES:
        started = time.monotonic()
        images[name] = build(engine, name, options, logs / f"{name}-build.log")
        say.print(f"built {name:<12}{time.monotonic() - started:>7.1f} s{images[name].megabytes():>7.0f} MB")
    return images


def answers(containers: ServiceContainers) -> dict[str, float]:
    """What the services say to somebody who asks."""
    gateway, prefect = "http://127.0.0.1:8000", "http://prefect:4200/api"
    said = containers.engine.execute("gateway", "cartridge", "key", "create", "application", "--json")
    key = str(json.loads(said)["token"])
    base = json.loads(containers.ask("gateway", f"{gateway}/v1/models", key)[1])["data"][0]["id"]
    question, unknown = (
        json.dumps({"model": model, "max_tokens": 8, "messages": [{"role": "user", "content": "Who are you?"}]})
        for model in (base, "no-such-corpus")
    )
    chat = f"{gateway}/v1/chat/completions"
    return {
        "gateway_without_key": float(containers.ask("gateway", chat, body=question)[0]),
        "gateway_base_model": float(containers.ask("gateway", chat, key, question)[0]),
        "gateway_unknown_corpus": float(containers.ask("gateway", chat, key, unknown)[0]),
        "mlflow_from_worker": float(containers.ask("worker-cpu", "http://mlflow:5000/health")[0]),
        "deployments": float(containers.ask("worker-cpu", f"{prefect}/deployments/count", body="{}")[1]),
    }


def workers_online(containers: ServiceContainers, pool: str) -> float:
    """Number of workers of a pool that Prefect's server hears, asked of it by its name."""
    url = f"http://prefect:4200/api/work_pools/{pool}/workers/filter"
    workers = json.loads(containers.ask("prefect", url, body="{}")[1])
    return float(sum(worker["status"] == "ONLINE" for worker in workers))


def started(containers: ServiceContainers, name: str, say: Console) -> dict[str, float]:
    """Start one service or run one job."""
    if name in JOBS:
        say.print(f"ran {name:<14}{containers.run_job(name):>7.1f} s")
        return {}
    seconds = containers.start(name, START_S)
    say.print(f"started {name:<10}{seconds:>7.1f} s")
    return {f"{name}_healthy_s": seconds, f"{name}_user": float(containers.user(name))}


def stopped(containers: ServiceContainers, name: str, say: Console) -> dict[str, float]:
    """Stop one service."""
    seconds, killed = containers.stop(name)
    say.print(f"stopped {name:<10}{seconds:>7.1f} s")
    return {f"{name}_stop_s": seconds, f"{name}_killed": float(killed)}


def run_all(containers: ServiceContainers, say: Console) -> dict[str, float]:
    """Start everything, ask it, stop it."""
    figures: dict[str, float] = {}
    for name in STEPS:
        figures |= started(containers, name, say)
    figures |= answers(containers) | {"workers_of_cpu": workers_online(containers, "cpu")}
    # The workers answer their health checks on one port, and here they share a loopback.
    figures |= stopped(containers, "worker-cpu", say) | started(containers, "worker-gpu", say)
    figures |= {"workers_of_gpu": workers_online(containers, "gpu")} | started(containers, "vllm", say)
    # Asked by its name, from where the gateway would ask.
    figures["vllm_from_gateway"] = float(containers.ask("gateway", "http://vllm:8001/health")[0])
    for name in tuple(reversed(containers.running)):
        figures |= stopped(containers, name, say)
    return figures


def asked() -> dict[str, Bound]:
    """What is asked of the figures."""
    exactly = {
        "secrets_in_images": 0,
        "strays_in_images": 0,
        **{f"{name}_killed": 0 for name in SERVICES},
        "gateway_without_key": 401,
        "gateway_base_model": 200,
        "gateway_unknown_corpus": 404,
        "mlflow_from_worker": 200,
        "vllm_from_gateway": 200,
    }
    return {
        **{f"{name}_mb": Bound(at_most=most) for name, most in IMAGES.items()},
        **{f"{name}_healthy_s": Bound(at_most=START_S) for name in SERVICES},
        **{f"{name}_user": Bound(at_least=1) for name in SERVICES},
        **{f"{name}_stop_s": Bound(at_most=STOP_S) for name in SERVICES},
        **{name: Bound(at_least=value, at_most=value) for name, value in exactly.items()},
        "deployments": Bound(at_least=7),
        "workers_of_cpu": Bound(at_least=1),
        "workers_of_gpu": Bound(at_least=1),
    }


def main() -> int:
    """Run it; 1 where something asked for is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--state", type=Path, default=STATE, help="folder of images, kept for later runs")
    parser.add_argument("--mount", type=Path, action="append", default=[], help="host path that builds see, read-only")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the report goes")
    options = parser.parse_args()
    say, began = Console(highlight=False), time.time()
    engine = ContainerEngine(options.state.resolve())
    logs = engine.state / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    figures: dict[str, float] = {}
    images: dict[str, BuiltImage] = {}
    secrets, strays, problem = [], [], ""
    try:
        engine.prepare()
        engine.clear()
        images = build_all(engine, options.mount, logs, say)
        for name, image in images.items():
            figures[f"{name}_mb"] = image.megabytes()
            secrets += [f"{name}: {found}" for found in image.secrets((INDEX,))]
            strays += [f"{name}: {found}" for found in image.strays()]
        figures |= {"secrets_in_images": float(len(secrets)), "strays_in_images": float(len(strays))}
        containers = ServiceContainers(engine, logs)
        containers.share_loopback(images["gateway"].base)
        figures |= run_all(containers, say)
        engine.clear()
    except (StackError, OSError, ValueError) as error:
        problem = str(error)
        say.print(problem, style="red", markup=False)
        with suppress(StackError):
            engine.clear()
    extra = {
        "podman": version_of("podman", "--version") if shutil.which("podman") else "not installed",
        "heaviest_mb": {name: image.heaviest() for name, image in images.items()},
        "secrets": secrets,
        "strays": strays,
        "problem": problem,
    }
    proof = write_proof("images-test", "make images-test", figures, asked(), began, extra, options.folder)
    say.print(f"Logs are in {logs}")
    return 0 if proof.ok else 1


if __name__ == "__main__":
    sys.exit(main())
