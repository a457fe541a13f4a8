"""`cartridge synthesize --teacher`."""

from pathlib import Path

from tests.cli.test_commands import answer, run
from tests.talkative import Workplace
from tests.teacher.servers import stubs


def test_servers_make_a_study(workplace: Workplace, tmp_path: Path) -> None:
    run("corpus", "add", "wards", workplace.documents)
    ask = ["synthesize", "wards", "--config", workplace.study_file]
    with stubs(tmp_path / "stubs", 2) as servers:
        named = [option for server in servers for option in ("--teacher", server.url)]
        made = answer(*ask, *named)
        assert made["num_conversations"] > 0 and not made["cached"]
        assert all(server.written() for server in servers)
        assert answer(*ask, *named[:2])["cached"]


def test_what_cannot_teach_is_one_sentence(workplace: Workplace) -> None:
    run("corpus", "add", "wards", workplace.documents)
    for address, said in (("gpu1:8001", "must look like http://"), ("http://127.0.0.1:9", "No teacher can be asked")):
        result = run("synthesize", "wards", "--teacher", address)
        assert result.exit_code == 1
        assert said in " ".join(result.output.split())
        assert "Traceback" not in result.output
