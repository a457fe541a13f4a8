"""`cartridge key` makes, lists and revokes keys."""

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
