"""Stand-ins for others' images where no registry is reached: Debian 12, its Python 3.11, and on them vLLM for CPUs."""

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.compose_file import ROOT
from tests.native_process import StackError
from tests.proofs.container_engine import ContainerEngine

MIRROR = "http://deb.debian.org/debian"
PACKAGES = ("ca-certificates", "python3", "python3-pip", "python3-venv")
UNNEEDED = ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/locale", "usr/share/man")
"""What the official images leave out as well."""


VLLM = """FROM {base}
ENV PIP_NO_CACHE_DIR=1 PIP_NO_COMPILE=1 PIP_DISABLE_PIP_VERSION_CHECK=1
COPY constraints-vllm.txt ./
RUN pip install -c constraints-vllm.txt torch==2.13.0 && pip install --no-deps -r constraints-vllm.txt
RUN apt-get update && apt-get install -y --no-install-recommends libnuma1
"""
"""As `make vllm-setup` does it."""


def base_name(dockerfile: Path) -> str:
    """The name of the image that a Dockerfile ends on.

    Raises:
        StackError: It names none.
    """
    named = re.findall(r"^FROM (\S+)", dockerfile.read_text(encoding="utf-8"), flags=re.MULTILINE)
    if not named:
        raise StackError(f"{dockerfile.relative_to(ROOT)} has no FROM.")
    return f"docker.io/{named[-1] if '/' in named[-1] else 'library/' + named[-1]}"


def make_base(engine: ContainerEngine, name: str, log: Path) -> None:
    """Give the engine an image of that name with `python` and `pip`, unless it has one.

    Raises:
        StackError: debootstrap failed or took more than ten minutes.
    """
    if engine.has_image(name):
        return
    folder = engine.state / "base"
    shutil.rmtree(folder, ignore_errors=True)
    command = ("debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", "bookworm", str(folder), MIRROR)
    _run(command, log, 600)
    python = folder / "usr/lib/python3.11"
    (python / "EXTERNALLY-MANAGED").unlink()
    (folder / "usr/bin/python").symlink_to("python3")
    for file in (found for path in UNNEEDED for found in (folder / path).rglob("*") if not found.is_dir()):
        file.unlink()
    archive = engine.state / "base.tar"
    _run(("tar", "-C", str(folder), "-cf", str(archive), "."), log, 300)
    engine.podman("import", str(archive), name, seconds=300, log=log)
    archive.unlink()
    shutil.rmtree(folder)


def make_vllm_base(engine: ContainerEngine, name: str, base: str, options: Sequence[str], log: Path) -> None:
    """Give the engine an image of that name with vLLM for CPUs on top of another, unless it has one."""
    if engine.has_image(name):
        return
    folder = engine.state / "vllm-base"
    folder.mkdir(exist_ok=True)
    (folder / "Dockerfile").write_text(VLLM.format(base=base), encoding="utf-8")
    shutil.copy(ROOT / "constraints-vllm.txt", folder)
    engine.podman("build", *options, "--tag", name, str(folder), seconds=1800, log=log)


def _run(command: tuple[str, ...], log: Path, seconds: float) -> None:
    with log.open("ab") as stream:
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT, timeout=seconds
            )
        except subprocess.TimeoutExpired:
            raise StackError(f"{command[0]} took more than {seconds:.0f} s; its log is {log}.") from None
    if done.returncode:
        raise StackError(f"{command[0]} ended with {done.returncode}; its log is {log}.")
