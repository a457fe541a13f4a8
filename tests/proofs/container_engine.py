"""podman with a storage of its own: the names that stand-ins take there mean nothing to other images of the machine."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.native_process import StackError

TOOLS = {"podman": "podman", "runc": "runc", "debootstrap": "debootstrap"}
"""Program to Debian package."""
CONFIGURATION = """[containers]
default_ulimits = []
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
"""
"""Runs without systemd, and inside machines whose limits of open files nobody may raise."""
KILLED = 137
"""Exit code of what SIGKILL ended."""


@dataclass(frozen=True)
class ContainerEngine:
    """podman below one folder.

    Args:
        state: Images, containers and volumes; several GB.
    """

    state: Path

    def prepare(self) -> None:
        """Write its configuration.

        Raises:
            StackError: A tool is missing, or this is not root.
        """
        if missing := [package for program, package in TOOLS.items() if not shutil.which(program)]:
            raise StackError(f"Not installed: {', '.join(missing)}. Run apt-get install -y {' '.join(missing)}.")
        if os.getuid() != 0:
            raise StackError("A base system is made by root only: run this as root.")
        self.state.mkdir(parents=True, exist_ok=True)
        self._configuration.write_text(CONFIGURATION, encoding="utf-8")

    @property
    def _configuration(self) -> Path:
        return self.state / "containers.conf"

    def podman(self, *words: str, seconds: float = 120, log: Path | None = None) -> str:
        """Run one of podman's commands; returns what it printed, and adds that to the log.

        Raises:
            StackError: It failed, or the time is over.
        """
        done = self._run(words, seconds)
        said = done.stdout + done.stderr
        if log is not None:
            with log.open("a", encoding="utf-8") as stream:
                stream.write(said)
        if done.returncode:
            last = "\n".join(said.strip().splitlines()[-30:])
            raise StackError(f"podman {' '.join(words[:2])} ended with {done.returncode}.\n{last}")
        return done.stdout

    def command(self, *words: str) -> tuple[str, ...]:
        """The whole command line."""
        places = (("--root", "storage"), ("--runroot", "run"), ("--tmpdir", "tmp"))
        below = (word for flag, name in places for word in (flag, str(self.state / name)))
        # Without a mount of its own, the folder can be removed as any other.
        driver = ("--storage-driver", "overlay", "--storage-opt", "overlay.skip_mount_home=true")
        return ("podman", *below, *driver, *words)

    @property
    def variables(self) -> dict[str, str]:
        """The environment that the command needs."""
        return {**os.environ, "CONTAINERS_CONF": str(self._configuration)}

    def has_image(self, image: str) -> bool:
        """Whether an image of that name is there."""
        return self._run(("image", "exists", image), 60).returncode == 0

    def image(self, image: str) -> dict[str, Any]:
        """What an image says of itself."""
        described: dict[str, Any] = json.loads(self.podman("image", "inspect", image))[0]
        return described

    @contextmanager
    def files(self, image: str) -> Iterator[Path]:
        """An image's files, while the block runs."""
        yield Path(self.podman("image", "mount", image).strip())
        self.podman("image", "unmount", image)

    def start(self, name: str, image: str, *options: str, command: Sequence[str] = ()) -> None:
        """Start a container by its own command, or by another. Nothing makes its pid 1 hear signals: no init."""
        # Health checks are run by `is_healthy`, not by timers of systemd.
        quiet = ("--health-interval", "disable", "--pull", "never")
        self.podman("run", "--detach", "--name", name, *quiet, *options, image, *command)

    def run_job(self, name: str, image: str, *options: str, command: Sequence[str], log: Path) -> None:
        """Run a container to its end, within five minutes."""
        self.podman("run", "--name", name, "--pull", "never", *options, image, *command, seconds=300, log=log)

    def wait_healthy(self, name: str, check: Sequence[str], seconds: float) -> float:
        """Wait until the image's HEALTHCHECK passes, or another where one is given; returns how long that took.

        Raises:
            StackError: The container ended, or the time is over.
        """
        started = time.monotonic()
        words = ("exec", name, *check) if check else ("healthcheck", "run", name)
        while not self._passes(words):
            if not self.state_of(name)["Running"]:
                raise StackError(f"{name} ended by itself.\n{self.tail(name)}")
            if time.monotonic() - started > seconds:
                raise StackError(f"{name} is not healthy after {seconds:.0f} s.\n{self.tail(name)}")
            time.sleep(1)
        return time.monotonic() - started

    def state_of(self, name: str) -> dict[str, Any]:
        """Whether it runs, and how it ended."""
        described: dict[str, Any] = json.loads(self.podman("container", "inspect", name))[0]["State"]
        return described

    def execute(self, name: str, *command: str, seconds: float = 120) -> str:
        """Run a command in a container; returns what it printed."""
        return self.podman("exec", name, *command, seconds=seconds)

    def stop(self, name: str, seconds: int) -> tuple[float, int]:
        """SIGTERM, and SIGKILL after that many seconds; returns how long it took and the exit code."""
        started = time.monotonic()
        self.podman("stop", "--time", str(seconds), name, seconds=seconds + 60)
        return time.monotonic() - started, int(self.state_of(name)["ExitCode"])

    def tail(self, name: str, lines: int = 30) -> str:
        """The end of a container's log."""
        done = self._run(("logs", "--tail", str(lines), name), 60)
        return done.stdout + done.stderr

    def clear(self) -> None:
        """Remove containers and volumes; images stay."""
        oldest_first = self.podman("ps", "--all", "--sort", "created", "--format", "{{.Names}}").split()
        # The first one lends its network to the others, so it goes last.
        for name in reversed(oldest_first):
            self.podman("rm", "--force", "--time", "2", name)
        self.podman("volume", "prune", "--force")

    def _passes(self, words: Sequence[str]) -> bool:
        try:
            return self._run(words, 30).returncode == 0
        except StackError:
            # podman may wait for ever for a check that its container did not outlive.
            return False

    def _run(self, words: Sequence[str], seconds: float) -> "subprocess.CompletedProcess[str]":
        try:
            return subprocess.run(
                self.command(*words),
                env=self.variables,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=seconds,
            )
        except subprocess.TimeoutExpired:
            raise StackError(f"podman {' '.join(words[:3])} took more than {seconds:.0f} s.") from None
