"""`cartridge train` says where a Cartridge starts."""

from pathlib import Path

import pytest

from tests.cli.test_commands import answer, refusal
from tests.talkative import Workplace


@pytest.fixture
def training(workplace: Workplace, tmp_path: Path) -> Path:
    answer("corpus", "add", "wards", workplace.documents)
    answer("synthesize", "wards", "--config", workplace.study_file)
    file = tmp_path / "train.toml"
    file.write_text("num_tokens = 24\nwarmup_steps = 1\nbatch_size = 4\neval_every = 2\nsteps = 2\n", encoding="utf-8")
    return file


def test_each_way_to_start_gives_another_cartridge(workplace: Workplace, training: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The ward of patient 3 is 21. " * 9, encoding="utf-8")
    first = answer("train", "wards", "--config", training)
    made = [
        first,
        answer("train", "wards", "--config", training, "--init", "random_vectors"),
        answer("train", "wards", "--config", training, "--init", "attention_matching"),
        answer("train", "wards", "--config", training, "--init-from", first["digest"][:8]),
        answer("train", "wards", "--config", training, "--init-text", text),
    ]
    assert len({cartridge["digest"] for cartridge in made}) == len(made)
    assert {cartridge["num_tokens"] for cartridge in made} == {24}
    assert answer("train", "wards", "--config", training, "--init-from", first["directory"])["cached"]
    text.write_text("The ward of patient 4 is 28. " * 9, encoding="utf-8")
    assert not answer("train", "wards", "--config", training, "--init-text", text)["cached"]


def test_a_file_states_options(workplace: Workplace, training: Path) -> None:
    options = '\ninitialization = "attention_matching"\n[initialization_options]\nkeys = "{}"\n'
    stated = training.read_text(encoding="utf-8")
    digests = set()
    for keys in ("rms", "merged"):
        training.write_text(stated + options.format(keys), encoding="utf-8")
        digests.add(answer("train", "wards", "--config", training)["digest"])
    assert len(digests) == 2
    training.write_text(stated + options.format("best"), encoding="utf-8")
    assert "'rms', 'omp' or 'merged'" in refusal("train", "wards", "--config", training)


def test_wrong_words_are_refused(workplace: Workplace, training: Path) -> None:
    assert "named 'magic'" in refusal("train", "wards", "--config", training, "--init", "magic")
    assert "not from both" in refusal("train", "wards", "--init-from", "1", "--init-text", training)
    assert "no Cartridge 'champion' to start from" in refusal(
        "train", "wards", "--config", training, "--init-from", "champion"
    )
    assert "text: Field required" in refusal("train", "wards", "--config", training, "--init", "text")


def test_a_start_is_learnt_and_started_from(workplace: Workplace, training: Path) -> None:
    answer("corpus", "add", "rooms", workplace.documents / "room.md")
    answer("synthesize", "rooms", "--config", workplace.study_file)
    words = ("--tokens", "24", "--rounds", "1", "--steps", "6")
    start = answer("learn-start", "wards", "rooms", *words)
    assert (start["num_tokens"], start["corpora"], start["cached"]) == (24, ["wards", "rooms"], False)
    assert answer("learn-start", "wards", "rooms", *words)["cached"]
    begun = answer("train", "wards", "--config", training, "--init-from", start["digest"][:8])
    assert not begun["cached"]
    assert "two or more different" in refusal("learn-start", "wards", *words)
    answer("corpus", "add", "nurses", workplace.documents / "nurse.md")
    answer("synthesize", "nurses", "--config", workplace.study_file)
    further = answer("learn-start", "rooms", "nurses", *words, "--from", start["digest"][:8])
    assert start["digest"] in further["ancestry"]
    assert answer("starts", "--remove", further["digest"])[0]["digest"] == start["digest"]
    (listed,) = answer("starts")
    assert (listed["digest"], listed["corpora"]) == (start["digest"], ["wards", "rooms"])
    assert "No learned starts begin with 'ffffff'" in refusal("starts", "--remove", "ffffff")
    assert answer("starts", "--remove", start["digest"][:8]) == []
