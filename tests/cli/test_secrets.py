"""Secrets of the environment never reach the output, the logs or a file, whether a command succeeds or fails."""

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
RUN = "import sys, logging; logging.basicConfig(level=logging.INFO); from cartridge_core.cli.main import app\n"
RUN += "from typer.testing import CliRunner\n"
RUN += "for line in sys.argv[1].split(';'):\n"
RUN += "    result = CliRunner().invoke(app, line.split())\n"
RUN += "    print(line, result.exit_code, result.output, repr(result.exception))\n"


@pytest.mark.parametrize("where", SURROUNDINGS)
def test_no_secret_is_told(where: str, tmp_path: Path) -> None:
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents" / "ward.md").write_text("# Ward\n\nThe ward is green.\n")
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
        "HOME": str(tmp_path),
        "CARTRIDGE_HOME": str(tmp_path / "home"),
        "AWS_ACCESS_KEY_ID": "me",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "1",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        **SECRETS,
        **SURROUNDINGS[where],
    }
    commands = ";".join(" ".join(command) for command in COMMANDS)
    run = subprocess.run(
        [sys.executable, "-c", RUN, commands],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    said = run.stdout + run.stderr
    assert said.count("wards") > 1
    written = b"".join(path.read_bytes() for path in (tmp_path / "home").rglob("*") if path.is_file())
    for secret in (*SECRETS.values(), PASSWORD, "short-0451"):
        assert secret not in said, f"{secret} in the output"
        assert secret.encode() not in written, f"{secret} in a file"
