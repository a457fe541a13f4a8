"""Starts stubs of vLLM's server as processes, which can be killed."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STUB = Path(__file__).with_name("vllm_stub.py")


@dataclass(frozen=True)
class Stub:
    """One server."""

    url: str
    process: "subprocess.Popen[str]"
    log: Path

    def kill(self) -> None:
        """As a power cut does."""
        self.process.kill()
        self.process.wait()

    def written(self) -> list[Any]:
        """Of each turn that it wrote: prompt, seed, number of log-probabilities, requests under way when it came."""
        return [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []


@contextmanager
def stub(folder: Path, **options: Any) -> Iterator[Stub]:
    """A server with these of `vllm_stub.OPTIONS`."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "written.jsonl"
    command = [sys.executable, STUB, json.dumps({"log": str(log), **options})]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield Stub(f"http://127.0.0.1:{int(process.stdout.readline())}", process, log)
        finally:
            process.kill()


@contextmanager
def stubs(folder: Path, count: int, **options: Any) -> Iterator[list[Stub]]:
    """Several alike."""
    with ExitStack() as stack:
        yield [stack.enter_context(stub(folder / str(number), **options)) for number in range(count)]
