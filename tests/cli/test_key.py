"""`cartridge key` makes, lists and revokes keys."""

from pathlib import Path

from cartridge_core.catalog import catalog_session
from cartridge_core.catalog.api_keys import find_api_key
from cartridge_core.digest import sha256_text
from tests.cli.test_commands import answer, refusal, run
from tests.talkative import Workplace


def test_a_key_from_the_command_line(workplace: Workplace) -> None:
    made = answer("key", "create", "intranet", "--corpus", "law", "--corpus", "clinic", "--requests-per-minute", "60")
    assert (made["corpora"], made["operator"], made["requests_per_minute"]) == (["clinic", "law"], False, 60)
    with catalog_session(workplace.settings) as session:
        found = find_api_key(session, made["key_id"], sha256_text(made["token"]))
    assert found is not None and found.name == "intranet"
    shown = run("key", "create", "ops", "--operator").stdout
    assert "ck-" in shown
    listed = answer("key", "list")
    assert [(key["name"], key["operator"]) for key in listed] == [("intranet", False), ("ops", True)]
    assert made["token"] not in run("key", "list").stdout
    assert answer("key", "revoke", made["key_id"])["revoked_at"]
    assert [key["revoked_at"] is None for key in answer("key", "list")] == [False, True]
    assert "has no key" in refusal("key", "revoke", "nope")
    assert "cannot be a key name" in refusal("key", "create", "Big Name")


def test_a_key_goes_to_a_file_and_is_not_shown(workplace: Workplace, tmp_path: Path) -> None:
    file = tmp_path / "key"
    made = answer("key", "create", "scraper", "--operator", "--to", str(file))
    assert "token" not in made and file.stat().st_mode & 0o777 == 0o600
    with catalog_session(workplace.settings) as session:
        found = find_api_key(session, made["key_id"], sha256_text(file.read_text(encoding="utf-8")))
    assert found is not None and found.operator
    assert "File exists" in refusal("key", "create", "again", "--to", str(file))
    assert "cannot be a key name" in refusal("key", "create", "Big Name", "--to", str(tmp_path / "other"))
    assert not (tmp_path / "other").exists()
    assert [key["name"] for key in answer("key", "list")] == ["scraper"]
    assert "ck-" not in run("key", "create", "shown", "--to", str(tmp_path / "third")).stdout
