"""A service as a process of this machine: started, watched, stopped as a container would be, or killed."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil


class StackError(Exception):
    """A service did not come up, or a step failed; with the end of its log."""


@dataclass
class NativeProcess:
    """A long-running process with a log and a health check."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    folder: Path
    """Working directory."""
    log: Path
    health: Sequence[str] | Callable[[], bool] = lambda: True
    """Command that ends with 0, or a function that says yes, once the service can be used."""
    stop_signal: signal.Signals = signal.SIGTERM
    """What asks it to end."""
    _process: "subprocess.Popen[bytes] | None" = field(default=None, init=False)

    def start(self) -> None:
        """Start it; its log goes on."""
        with self.log.open("ab") as stream:
            self._process = subprocess.Popen(
                self.command,
                env=dict(self.environment),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                # Prefect turns SIGTERM into SIGINT, which a background job of a shell would have inherited as ignored.
                preexec_fn=_hear_sigint,
            )

    @property
    def pid(self) -> int:
        """Number of the running process."""
        assert self._process is not None, f"{self.name} does not run"
        return self._process.pid

    def wait_healthy(self, seconds: float) -> float:
        """Wait until its health check passes; returns how long that took.

        Raises:
            StackError: It ended, or the time is over.
        """
        started = time.monotonic()
        while True:
            if self._process is None or self._process.poll() is not None:
                raise StackError(f"{self.name} ended by itself.\n{self.tail()}")
            if self.is_healthy():
                return time.monotonic() - started
            if time.monotonic() - started > seconds:
                raise StackError(f"{self.name} is not healthy after {seconds:.0f} s.\n{self.tail()}")
            time.sleep(0.3)

    def is_healthy(self) -> bool:
        """Whether its health check passes now."""
        if callable(self.health):
            return self.health()
        done = subprocess.run(self.health, env=dict(self.environment), cwd=self.folder, capture_output=True, timeout=60)
        return done.returncode == 0

    def stop(self, seconds: float = 30) -> None:
        """Ask it to end, as `docker compose stop` does, then end it and all that it started."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(self.stop_signal)
            with suppress(subprocess.TimeoutExpired):
                process.wait(seconds)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def kill(self) -> None:
        """End it and all its descendants, those in sessions of their own too, as a power cut would."""
        process, self._process = self._process, None
        if process is None:
            return
        with suppress(psutil.NoSuchProcess):
            parent = psutil.Process(process.pid)
            for member in (parent, *parent.children(recursive=True)):
                with suppress(psutil.NoSuchProcess):
                    member.kill()
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # what its dead children left behind
        process.wait()

    def tail(self, lines: int = 30) -> str:
        """The end of its log."""
        return tail(self.log, lines)


def answers(url: str) -> Callable[[], bool]:
    """A health check: whether a GET of the URL gives 200."""

    def check() -> bool:
        try:
            return httpx.get(url, timeout=2).status_code == 200
        except httpx.HTTPError:
            return False

    return check


def run_job(name: str, command: Sequence[str], environment: Mapping[str, str], folder: Path, log: Path) -> str:
    """Run a one-shot job to its end; returns what it printed.

    Raises:
        StackError: It failed or took more than five minutes.
    """
    try:
        done = subprocess.run(
            command, env=dict(environment), cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, timeout=300
        )
    except subprocess.TimeoutExpired:
        raise StackError(f"{name} took more than five minutes.") from None
    with log.open("ab") as stream:
        stream.write(done.stdout + done.stderr)
    if done.returncode:
        raise StackError(f"{name} ended with {done.returncode}.\n{tail(log)}")
    return done.stdout.decode()


def tail(log: Path, lines: int = 30) -> str:
    """The last lines of a log."""
    if not log.exists():
        return ""
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])


def _hear_sigint() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
