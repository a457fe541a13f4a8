"""Studies that vLLM servers speak: the same dataset from any number of them, whole after one has died."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from cartridge_core.errors import TeacherError
from cartridge_core.selfstudy.quiz import QuizConfig
from cartridge_core.settings import Settings
from cartridge_core.stages import model as models
from cartridge_core.stages.ingest import ingest
from cartridge_core.stages.questions import generated_questions
from cartridge_core.stages.study import StudiedDataset, study
from cartridge_core.teacher import openai
from tests.talkative import STUDY, Workplace
from tests.teacher.servers import Stub, stub, stubs

CONFIG = STUDY.model_copy(update={"chunks_per_shard": 1})


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Stub]]:
    with stubs(tmp_path_factory.mktemp("two"), 2) as servers:
        yield servers


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(models, "_loaded", refuse)


def study_in(home: Path, workplace: Workplace, servers: Sequence[Stub], spread: Any = None) -> StudiedDataset:
    """A study in a home of its own."""
    settings = workplace.settings.model_copy(update={"home": home, "teachers": tuple(one.url for one in servers)})
    return study(settings, ingest(settings, "wards", [workplace.documents]), CONFIG, spread=spread)


def files(dataset: StudiedDataset) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in dataset.product.directory.glob("shard-*")}


def in_two_threads(work: Callable[[int], None], groups: Sequence[int], done: Callable[[int], None]) -> None:
    """As a flow engine does."""
    with ThreadPoolExecutor(2) as pool:
        for count, _ in enumerate(pool.map(work, groups), 1):
            done(count)


def test_servers_and_workers_change_nothing_and_no_weights_are_loaded(
    workplace: Workplace, two: list[Stub], tmp_path: Path, no_weights: None
) -> None:
    before = [len(server.written()) for server in two]
    one = study_in(tmp_path / "one", workplace, two[:1])
    both = study_in(tmp_path / "both", workplace, two)
    spread = study_in(tmp_path / "spread", workplace, two, in_two_threads)
    assert len(files(one)) == CONFIG.num_shards == 6
    assert files(one) == files(both) == files(spread)
    assert one.product.key == both.product.key == spread.product.key
    assert one.digest == both.digest == spread.digest
    assert one.load().manifest.plan.teacher == "openai"
    assert one.product.facts["num_conversations"] > 0
    assert all(len(server.written()) > count for server, count in zip(two, before, strict=True))


def test_the_dataset_says_that_another_teacher_made_it(workplace: Workplace, two: list[Stub], tmp_path: Path) -> None:
    remote = study_in(tmp_path / "home", workplace, two)
    local = study_in(tmp_path / "home", workplace, [])
    assert remote.product.key != local.product.key
    plans = [(dataset.product.directory / "plan.json").read_text() for dataset in (remote, local)]
    assert ['"teacher": "openai"' in plan for plan in plans] == [True, False]
    assert "teacher" not in plans[1] and "teacher" not in local.product.inputs


def test_a_server_that_dies_in_the_middle_loses_and_repeats_nothing(
    workplace: Workplace, two: list[Stub], tmp_path: Path
) -> None:
    wanted = files(study_in(tmp_path / "wanted", workplace, two[:1]))
    with stubs(tmp_path / "dying", 2, pause_s=0.1) as servers:

        def kill() -> None:
            while len(servers[0].written()) < 5:
                time.sleep(0.01)
            servers[0].kill()

        killer = threading.Thread(target=kill)
        killer.start()
        made = study_in(tmp_path / "made", workplace, servers)
        killer.join()
        # The look at the servers before the study has seed 0.
        told = [[seed for _, seed, *_ in server.written() if seed] for server in servers]
    assert files(made) == wanted
    rows = [row for name in sorted(wanted) for row in pq.read_table(made.product.directory / name).to_pylist()]
    assert [row["sample_index"] for row in rows] == list(range(CONFIG.num_conversations))
    assert 3 <= len(told[0]) < len(told[1])
    assert len({*told[0], *told[1]}) == len(told[0]) + len(told[1]), "a turn that had been answered was asked again"


def test_a_study_whose_servers_are_gone_goes_on_with_others(
    workplace: Workplace, two: list[Stub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openai, "OpenAIConfig", partial(openai.OpenAIConfig, attempts=2))
    wanted = files(study_in(tmp_path / "wanted", workplace, two[:1]))
    home = tmp_path / "home"
    with stub(tmp_path / "dying", pause_s=0.05) as server:
        shards = lambda: list(home.glob("**/shard-*.parquet"))  # noqa: E731

        def kill() -> None:
            while not shards():
                time.sleep(0.005)
            server.kill()

        killer = threading.Thread(target=kill)
        killer.start()
        monkeypatch.setattr("cartridge_core.stages.study_shard.SHARDS_PER_SERVER", 1)
        with pytest.raises(TeacherError, match="No teacher answered in 2 attempts"):
            study_in(home, workplace, [server])
        killer.join()
    finished = {path.name: path.stat().st_mtime_ns for path in shards()}
    assert 0 < len(finished) < CONFIG.num_shards
    made = study_in(home, workplace, two)
    assert files(made) == wanted
    assert {path.name: path.stat().st_mtime_ns for path in shards() if path.name in finished} == finished


def test_a_wrong_server_is_refused_before_anything_is_made(
    workplace: Workplace, two: list[Stub], tmp_path: Path
) -> None:
    def spread(*_: object) -> None:
        raise AssertionError("the study had begun")

    with (
        stub(tmp_path / "wrong", model="another") as wrong,
        pytest.raises(TeacherError, match=f"{wrong.url} serves 'another'"),
    ):
        study_in(tmp_path / "home", workplace, [two[0], wrong], spread)


def test_servers_ask_the_exam_too(workplace: Workplace, two: list[Stub], no_weights: None) -> None:
    settings = workplace.settings.model_copy(update={"teachers": tuple(server.url for server in two)})
    corpus = ingest(settings, "wards", [workplace.documents])
    config = QuizConfig(num_questions=3, max_tokens_a=8, max_tokens_b=8, chunk=CONFIG.chunk)
    assert generated_questions(settings, corpus, None, config)


def test_teachers_are_named_by_variable_file_or_argument(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    Path("cartridge.toml").write_text('teachers = ["http://file:1/"]\nteacher_key = "sesame-open"\n')
    assert Settings().teachers == ("http://file:1",)
    monkeypatch.setenv("CARTRIDGE_TEACHERS", "http://a:1, http://b:2")
    assert Settings().teachers == ("http://a:1", "http://b:2")
    settings = Settings(teachers=("https://c/x/",))
    assert settings.teachers == ("https://c/x",)
    assert "sesame" not in repr(settings) + str(settings.model_dump())
