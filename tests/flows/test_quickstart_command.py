"""`cartridge quickstart` as a process: one temporary server at most, and a proof beside the table."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.talkative import Workplace

SCRIPT = """
import sys
import flows.quickstart
from cartridge_core.cli.main import main
from tests.talkative import tiny_plan
flows.quickstart.SHORT_PLAN = tiny_plan(sys.argv.pop(1))
main()
"""


def test_quickstart_starts_one_server_and_writes_a_proof(workplace: Workplace) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    environment |= {"PREFECT_HOME": str(Path("prefect").absolute()), "PREFECT_LOGGING_LEVEL": "INFO"}
    # Set before the script imports Prefect, which the command itself does later.
    environment["PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS"] = "300"
    command = [sys.executable, "-c", SCRIPT, workplace.model, "quickstart", "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    proof = json.loads(Path("build/reports/tiny.json").read_text(encoding="utf-8"))
    assert told["ok"] and proof["ok"]
    assert proof["command"] == "cartridge quickstart"
    assert done.stderr.count("Starting temporary server") == 1
