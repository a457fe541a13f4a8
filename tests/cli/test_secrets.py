"""Secrets of the environment never reach the output, the logs or a file, whether a command succeeds or fails."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SECRETS = {
    "AWS_SECRET_ACCESS_KEY": "s3-secret-0451",
    "AWS_SESSION_TOKEN": "s3-session-0451",
    "CARTRIDGE_ATTACHMENT_KEY": "attachment-key-0451-0451-0451-0451",
    "HF_TOKEN": "hf_token0451",
    "MLFLOW_TRACKING_PASSWORD": "mlflow-password-0451",
}
PASSWORD = "database-password-0451"

COMMANDS = (
    ["corpus", "add", "wards", "documents"],
    ["corpus", "list", "--json"],
    ["doctor"],
    ["gc", "--json"],
    ["audit"],
    ["key", "create", "intranet"],
    ["register", "wards"],
    ["catalog", "upgrade", "--json"],
    ["catalog", "roles", "--apply"],
)
# Servers that are not there, S3 that does not answer, a URL that cannot be read, a key that is too short.
SURROUNDINGS: dict[str, dict[str, str]] = {
    "embedded": {},
    "no database": {"CARTRIDGE_CATALOG_URL": f"postgresql://me:{PASSWORD}@127.0.0.1:1/catalog"},
    "no S3": {
        "CARTRIDGE_ARTIFACT_ROOT": "s3://nowhere/root",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:1",
        "CARTRIDGE_OPERATOR_CATALOG_URL": f"postgresql://me:{PASSWORD}@127.0.0.1:1/catalog",
    },
    "no MLflow": {"MLFLOW_TRACKING_URI": f"http://me:{PASSWORD}@127.0.0.1:1"},
    "wrong": {"CARTRIDGE_CATALOG_URL": f"oracle://me:{PASSWORD}@host/catalog"},
    "short key": {"CARTRIDGE_ATTACHMENT_KEY": "short-0451"},
}
RUN = """
import json, logging, os, pathlib, sys
from typer.testing import CliRunner
from cartridge_core.cli.main import app

logging.basicConfig(level=logging.INFO)
commands, surroundings = map(json.loads, sys.argv[1:])
print(CliRunner().invoke(app, ["doctor"]).output, flush=True)
for where, variables in surroundings.items():
    if os.fork():
        assert os.wait()[1] == 0, where
        continue
    status = 1
    try:
        os.chdir(where)
        os.environ.update(variables, CARTRIDGE_HOME=str(pathlib.Path("home").absolute()))
        said = os.open("said", os.O_CREAT | os.O_WRONLY)
        os.dup2(said, 1), os.dup2(said, 2)
        for line in commands:
            result = CliRunner().invoke(app, line)
            print(line, result.exit_code, result.output, repr(result.exception), flush=True)
        status = 0
    finally:
        os._exit(status)
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a folder for each surroundings: what the commands said there, in a process of its own, and its home.

    The processes are forked from one that has imported everything for a first command, because importing takes seconds.
    """
    folder = tmp_path_factory.mktemp("told")
    for where in SURROUNDINGS:
        documents = folder / where / "documents"
        documents.mkdir(parents=True)
        (documents / "ward.md").write_text("# Ward\n\nThe ward is green.\n")
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
        "HOME": str(folder),
        "CARTRIDGE_HOME": str(folder / "first"),
        "AWS_ACCESS_KEY_ID": "me",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "1",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        **SECRETS,
    }
    command = [sys.executable, "-c", RUN, json.dumps(COMMANDS), json.dumps(SURROUNDINGS)]
    with (folder / "said").open("wb") as said:
        subprocess.run(command, cwd=folder, env=environment, stdout=said, stderr=said, timeout=300, check=True)
    return folder


@pytest.mark.parametrize("where", SURROUNDINGS)
def test_no_secret_is_told(told: Path, where: str) -> None:
    said = (told / where / "said").read_text(encoding="utf-8")
    assert said.count("wards") > 1
    said += (told / "said").read_text(encoding="utf-8")
    written = b"".join(path.read_bytes() for path in (told / where / "home").rglob("*") if path.is_file())
    for secret in (*SECRETS.values(), PASSWORD, "short-0451"):
        assert secret not in said, f"{secret} in the output"
        assert secret.encode() not in written, f"{secret} in a file"
