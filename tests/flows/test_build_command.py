"""`cartridge build`: a user's own documents, in one command."""

import json

from typer.testing import CliRunner

from cartridge_core.cli.main import app
from tests.talkative import Workplace


def test_it_tells_what_became_of_the_documents(prefect_server: str, workplace: Workplace) -> None:
    words = ["build", "wards", workplace.documents, "--questions", workplace.questions, "--tokens", 24, "--steps", 30]
    words += ["--study-config", workplace.study_file]
    runner = CliRunner()
    told = runner.invoke(app, [str(word) for word in words])
    assert told.exit_code == 0, told.output
    assert "default.wards." in told.output and "v1" in told.output
    record = json.loads(runner.invoke(app, [str(word) for word in [*words, "--json"]]).stdout)
    assert record["version"]["version"] == 1
    assert record["cartridge"]["cached"]
    # The gate refuses so small a model, and says so.
    assert not record["promotion"]["passed"]
    assert "no: " in told.output
