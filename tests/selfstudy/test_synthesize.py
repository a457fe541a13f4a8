import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import cartridge_core
from cartridge_core.corpus import Corpus
from cartridge_core.dataset import ConversationDataset
from cartridge_core.errors import DatasetError, TeacherError
from cartridge_core.inference.generate import Generation
from cartridge_core.models import BaseModel
from cartridge_core.selfstudy.config import SelfStudyConfig
from cartridge_core.selfstudy.conversation import OUTCOMES
from cartridge_core.selfstudy.manifest import DatasetManifest
from cartridge_core.selfstudy.question_key import question_key
from cartridge_core.selfstudy.synthesize import synthesize
from cartridge_core.teacher.local import LocalTeacher

HERE = Path(__file__).parent


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def whole(base: BaseModel, corpus: Corpus, config: SelfStudyConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted study."""
    folder = tmp_path_factory.mktemp("whole")
    synthesize(corpus, LocalTeacher(base), base.tokenizer, config, folder)
    return folder


class Interrupted(LocalTeacher):
    """A teacher that fails after a number of calls, as a server does."""

    def __init__(self, base: BaseModel, calls: int) -> None:
        super().__init__(base)
        self.calls = calls

    def ask(self, *args: object, **kwargs: object) -> list[Generation]:
        if not self.calls:
            raise TeacherError("gone")
        self.calls -= 1
        return super().ask(*args, **kwargs)  # type: ignore[arg-type]


def test_every_sample_is_accounted_for(whole: Path, config: SelfStudyConfig) -> None:
    manifest = DatasetManifest.load(whole)
    rows = [row for entry in manifest.shards for row in pq.read_table(whole / entry.file).to_pylist()]
    assert [row["sample_index"] for row in rows] == list(range(config.num_conversations))
    assert [row["family"] for row in rows[:7]] == [*config.families, *config.families[:2]]
    assert sum(manifest.counts.values()) == config.num_conversations
    assert set(manifest.counts) <= set(OUTCOMES)
    for outcome, count in manifest.counts.items():
        assert count == sum(row["outcome"] == outcome for row in rows)
    for reason in ("kept", "question_unfinished", "question_empty", "answer_unfinished"):
        assert manifest.counts[reason] > 0, "the test should see it"
    for family, outcomes in manifest.counts_by_family.items():
        unfinished = [r for r in rows if r["family"] == family and r["outcome"].endswith("unfinished")]
        assert manifest.unfinished[family] == len(unfinished)
        assert sum(outcomes.values()) == sum(row["family"] == family for row in rows)
    assert all(bool(row["token_ids"]) == (row["outcome"] == "kept") for row in rows)
    assert manifest.num_tokens == sum(len(row["token_ids"]) for row in rows)
    assert manifest.num_target_tokens == sum(sum(row["assistant_mask"]) for row in rows)
    assert 0 < manifest.mean_tail_mass < 1


def test_the_same_inputs_give_the_same_dataset(
    whole: Path, base: BaseModel, corpus: Corpus, config: SelfStudyConfig, tmp_path: Path
) -> None:
    renamed = Corpus("another-name", corpus.documents)
    again = synthesize(renamed, LocalTeacher(base), base.tokenizer, config, tmp_path / "again")
    assert again.digest == DatasetManifest.load(whole).digest
    assert files(tmp_path / "again") == files(whole)
    other = config.model_copy(update={"seed": 8})
    assert synthesize(corpus, LocalTeacher(base), base.tokenizer, other, tmp_path / "o").digest != again.digest


def test_the_size_of_a_shard_changes_no_sample(
    whole: Path, base: BaseModel, corpus: Corpus, config: SelfStudyConfig, tmp_path: Path
) -> None:
    synthesize(
        corpus, LocalTeacher(base), base.tokenizer, config.model_copy(update={"chunks_per_shard": 5}), tmp_path / "s"
    )
    one, other = (
        [row for path in sorted(folder.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
        for folder in (whole, tmp_path / "s")
    )
    assert one == other
    assert len(list((tmp_path / "s").glob("*.parquet"))) == 3


def test_a_killed_study_resumes_without_loss_or_repeat(
    whole: Path, talkative: Path, base: BaseModel, corpus: Corpus, config: SelfStudyConfig, tmp_path: Path
) -> None:
    corpus.save(tmp_path / "corpus")
    folder = tmp_path / "study"
    environment = {**os.environ, "PYTHONPATH": str(Path(cartridge_core.__file__).parents[1])}

    def start(pause: float) -> "subprocess.Popen[bytes]":
        arguments = [talkative, tmp_path / "corpus", config.model_dump_json(), folder, pause]
        return subprocess.Popen([sys.executable, HERE / "study_process.py", *map(str, arguments)], env=environment)

    process = start(pause=0.2)
    while len(list(folder.glob("shard-*.parquet"))) < 2:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    survivors = {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.glob("shard-*")}
    assert 2 <= len(survivors) < config.num_shards
    assert not (folder / "manifest.json").exists()
    with pytest.raises(DatasetError, match=r"no complete dataset.*it resumes"):
        ConversationDataset.load(folder)
    (folder / ".shard-00004.parquet.killed.tmp").write_bytes(b"half a shard")  # what a kill while writing leaves
    manifest = synthesize(corpus, LocalTeacher(base), base.tokenizer, config, folder)
    assert manifest.digest == DatasetManifest.load(whole).digest
    assert files(folder) == files(whole)
    after = {name: ((folder / name).stat().st_ino, (folder / name).stat().st_mtime_ns) for name in survivors}
    assert after == survivors, "a finished shard was made again"


def test_a_failing_teacher_costs_no_finished_shard(
    whole: Path, base: BaseModel, corpus: Corpus, config: SelfStudyConfig, tmp_path: Path
) -> None:
    with pytest.raises(TeacherError, match="gone"):
        synthesize(corpus, Interrupted(base, calls=9), base.tokenizer, config, tmp_path)
    assert len(list(tmp_path.glob("*.parquet"))) == 2  # two calls a chunk, two chunks a shard
    calls = 2 * (config.num_chunks - 4)
    manifest = synthesize(corpus, Interrupted(base, calls), base.tokenizer, config, tmp_path)
    assert manifest.digest == DatasetManifest.load(whole).digest
    heard: list[tuple[int, int]] = []
    nobody = Interrupted(base, calls=0)
    again = synthesize(
        corpus, nobody, base.tokenizer, config, tmp_path, lambda done, total, _: heard.append((done, total))
    )
    assert (again, heard) == (manifest, [(92, 92)])


@pytest.mark.parametrize("damage", ["cut", "lost", "changed", "foreign"])
def test_a_damaged_shard_is_made_again(
    whole: Path, base: BaseModel, corpus: Corpus, config: SelfStudyConfig, tmp_path: Path, damage: str
) -> None:
    for name, content in files(whole).items():
        (tmp_path / name).write_bytes(content)
    shard = tmp_path / "shard-00002.parquet"
    content = shard.read_bytes()
    if damage == "lost":
        shard.unlink()
    else:
        foreign = (whole / "shard-00001.parquet").read_bytes()
        flipped = content[:100] + bytes([content[100] ^ 1]) + content[101:]
        shard.write_bytes({"cut": content[:-50], "changed": flipped, "foreign": foreign}[damage])
    with pytest.raises(DatasetError, match=r"shard-00002\.parquet missing or changed"):
        ConversationDataset.load(tmp_path)
    if damage in ("cut", "foreign"):
        (tmp_path / "manifest.json").unlink()  # as if it had been damaged while the study was still running
    synthesize(corpus, LocalTeacher(base), base.tokenizer, config, tmp_path)
    assert files(tmp_path) == files(whole)


def test_a_folder_belongs_to_one_study(
    whole: Path, base: BaseModel, corpus: Corpus, config: SelfStudyConfig, tmp_path: Path
) -> None:
    before = files(whole)
    other = config.model_copy(update={"seed": 8})
    with pytest.raises(DatasetError, match="another study: it differs in config"):
        synthesize(corpus, LocalTeacher(base), base.tokenizer, other, whole)
    with pytest.raises(DatasetError, match="differs in corpus_digest"):
        synthesize(Corpus("x", corpus.documents[:1]), LocalTeacher(base), base.tokenizer, config, whole)
    with pytest.raises(DatasetError, match="differs in held_out_digest"):
        synthesize(corpus, LocalTeacher(base), base.tokenizer, config, whole, held_out_questions=["what?"])
    assert files(whole) == before


def test_held_out_questions_are_never_learnt(
    whole: Path, base: BaseModel, corpus: Corpus, config: SelfStudyConfig, tmp_path: Path
) -> None:
    reserved = [text for text in ConversationDataset.load(whole).questions() if re.search(r"\w", text)][:5]
    shouted = [f"  {question.upper()}?" for question in reserved]
    manifest = synthesize(corpus, LocalTeacher(base), base.tokenizer, config, tmp_path, held_out_questions=shouted)
    assert manifest.counts["question_held_out"] >= len(set(map(question_key, reserved)))
    learnt = set(map(question_key, ConversationDataset.load(tmp_path).questions()))
    assert learnt and not learnt & set(map(question_key, reserved))


def test_a_study_that_keeps_nothing_is_an_error(
    base: BaseModel, corpus: Corpus, config: SelfStudyConfig, tmp_path: Path
) -> None:
    mute = config.model_copy(update={"max_tokens_b": 1, "num_conversations": 8, "temperature_b": 0.0})
    with pytest.raises(DatasetError, match=r"All 8 conversations were dropped.*answer_.*max_tokens_b"):
        synthesize(corpus, LocalTeacher(base), base.tokenizer, mute, tmp_path)
    assert not (tmp_path / "manifest.json").exists()
