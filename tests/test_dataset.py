from pathlib import Path

import numpy as np
import pytest

from cartridge_core.dataset import ConversationDataset
from cartridge_core.digest import sha256_file
from cartridge_core.errors import BaseModelMismatchError, DatasetError
from cartridge_core.manifest import BaseModelIdentity
from cartridge_core.selfstudy.config import SelfStudyConfig
from cartridge_core.selfstudy.conversation import Sample, Targets
from cartridge_core.selfstudy.manifest import DatasetManifest
from cartridge_core.selfstudy.plan import StudyPlan
from cartridge_core.selfstudy.question_key import question_key
from cartridge_core.selfstudy.shard import shard_file, write_shard

IDENTITY = BaseModelIdentity(id="tiny", revision="abc", config_digest="c", tokenizer_digest="t")
CONFIG = SelfStudyConfig(num_conversations=60, conversations_per_chunk=10, chunks_per_shard=2, families=("question",))


def sample(index: int, k: int = 4) -> Sample:
    """Every third sample is dropped; a question is asked twice in different letters."""
    dropped = index % 3 == 0 or 20 <= index < 40  # the second shard keeps nothing
    rng = np.random.default_rng(index)
    length, answer = 4 + index % 5, 1 + index % 3
    targets = Targets(
        token_ids=rng.integers(0, 99, length, dtype=np.int32),
        assistant_mask=np.arange(length) >= length - answer,
        topk_ids=rng.integers(0, 99, (answer, k), dtype=np.int32),
        topk_logprobs=-rng.random((answer, k), dtype=np.float32),
        tail_logprob=-rng.random(answer, dtype=np.float32),
    )
    question = f"Question {index // 2}" + "?!"[index % 2]
    outcome = "answer_unfinished" if dropped else "kept"
    kept = None if dropped else targets
    return Sample(index, "question", f"c:{index // 10}", index + 1, "Ask.", outcome, question, f"Answer {index}", kept)


def make(folder: Path, k: int = 4) -> list[Sample]:
    plan = StudyPlan.build("corpus", IDENTITY, "template", CONFIG)
    plan.claim(folder)
    samples = [sample(index, k if index < 40 else 4) for index in range(CONFIG.num_conversations)]
    for shard in range(CONFIG.num_shards):
        write_shard(folder / shard_file(shard), samples[shard * 20 : shard * 20 + 20], plan.digest)
    DatasetManifest.of_folder(folder, plan).save(folder)
    return samples


def test_kept_conversations_come_back_in_order(tmp_path: Path) -> None:
    kept = [s for s in make(tmp_path) if s.targets is not None]
    dataset = ConversationDataset.load(tmp_path)
    assert len(dataset) == len(kept) == dataset.manifest.num_conversations
    assert dataset.questions() == [s.question for s in kept]
    assert dataset.chunk_ids() == [s.chunk_id for s in kept]
    assert dataset.lengths.tolist() == [len(s.targets.token_ids) for s in kept if s.targets]
    for conversation, wanted in zip(dataset, kept, strict=True):
        assert (conversation.sample_index, conversation.family, conversation.chunk_id, conversation.seed) == (
            wanted.sample_index, wanted.family, wanted.chunk_id, wanted.seed,
        )  # fmt: skip
        assert conversation.messages == (
            {"role": "user", "content": wanted.question},
            {"role": "assistant", "content": wanted.answer},
        )
        assert conversation.finished
        for name in ("token_ids", "assistant_mask", "topk_ids", "topk_logprobs", "tail_logprob"):
            np.testing.assert_array_equal(getattr(conversation, name), getattr(wanted.targets, name))
            assert getattr(conversation, name).base is not None, "a view, no copy"
    assert dataset[-1].sample_index == kept[-1].sample_index
    with pytest.raises(IndexError):
        dataset[len(dataset)]


def test_what_was_dropped_is_counted(tmp_path: Path) -> None:
    samples = make(tmp_path)
    dataset = ConversationDataset.load(tmp_path)
    dropped = sum(s.targets is None for s in samples)
    assert dataset.unfinished() == {"question": dropped}
    assert dataset.manifest.counts == {"kept": 60 - dropped, "answer_unfinished": dropped}


def test_no_question_is_on_both_sides_of_a_split(tmp_path: Path) -> None:
    make(tmp_path)
    dataset = ConversationDataset.load(tmp_path)
    train, held_out = dataset.split(0.25, seed=1)
    keys = [{question_key(question) for question in part.questions()} for part in (train, held_out)]
    assert not keys[0] & keys[1]
    assert len(keys[1]) == round(0.25 * len(keys[0] | keys[1]))
    indices = sorted(c.sample_index for part in (train, held_out) for c in part)
    assert indices == [c.sample_index for c in dataset]
    assert [c.sample_index for c in dataset.split(0.25, seed=1)[1]] == [c.sample_index for c in held_out]
    assert [c.sample_index for c in dataset.split(0.25, seed=2)[1]] != [c.sample_index for c in held_out]


def test_a_split_keeps_both_sides_alive_or_holds_out_nothing(tmp_path: Path) -> None:
    make(tmp_path)
    dataset = ConversationDataset.load(tmp_path)
    assert [len(part) for part in dataset.split(0.0)] == [len(dataset), 0]
    assert all(len(part) for part in dataset.split(0.001))
    assert all(len(part) for part in dataset.split(0.999))
    for fraction in (-0.1, 1.0):
        with pytest.raises(DatasetError, match="not in"):
            dataset.split(fraction)
    with pytest.raises(DatasetError, match="1 distinct questions cannot be parted"):
        dataset.select([0]).split(0.5)


def test_a_selection_is_in_the_order_asked_for(tmp_path: Path) -> None:
    make(tmp_path)
    dataset = ConversationDataset.load(tmp_path)
    part = dataset.select([5, 0, 3]).select([2, 0])
    assert [c.sample_index for c in part] == [dataset[3].sample_index, dataset[5].sample_index]
    assert part.lengths.tolist() == [len(c.token_ids) for c in part]
    assert part.manifest is dataset.manifest


def test_another_model_is_refused_by_name_and_revision(tmp_path: Path) -> None:
    make(tmp_path)
    dataset = ConversationDataset.load(tmp_path)
    dataset.check_base_model(IDENTITY)
    for field in ("id", "revision", "config_digest", "tokenizer_digest"):
        with pytest.raises(BaseModelMismatchError, match=rf"tiny \(revision abc\).*differ in {field}\. Load tiny"):
            dataset.check_base_model(IDENTITY.model_copy(update={field: "other"}))


def test_an_unfinished_or_changed_dataset_is_refused(tmp_path: Path) -> None:
    make(tmp_path)
    shard = tmp_path / shard_file(1)
    content = shard.read_bytes()
    shard.write_bytes(content[:60] + bytes([content[60] ^ 1]) + content[61:])
    with pytest.raises(DatasetError, match=r"shard-00001\.parquet missing or changed\. Run the study again"):
        ConversationDataset.load(tmp_path)
    manifest = tmp_path / "manifest.json"
    for text in ("{}", manifest.read_text().replace('"format_version": 1', '"format_version": 2', 1)):
        manifest.write_text(text)
        with pytest.raises(DatasetError, match="cannot be used"):
            ConversationDataset.load(tmp_path)
    manifest.unlink()
    with pytest.raises(DatasetError, match="no complete dataset"):
        ConversationDataset.load(tmp_path)


def test_shards_of_different_widths_are_refused(tmp_path: Path) -> None:
    make(tmp_path, k=3)
    with pytest.raises(DatasetError, match=r"different numbers of tokens at a position: \[3, 4\]"):
        ConversationDataset.load(tmp_path)


def test_a_manifest_that_miscounts_is_refused(tmp_path: Path) -> None:
    make(tmp_path)
    manifest = DatasetManifest.load(tmp_path)
    counts = {"question": {**manifest.counts_by_family["question"], "kept": 1}}
    manifest.model_copy(update={"counts_by_family": counts}).save(tmp_path)
    with pytest.raises(DatasetError, match="its manifest says 1"):
        ConversationDataset.load(tmp_path)


def test_the_digest_is_of_plan_and_files(tmp_path: Path) -> None:
    make(tmp_path / "a")
    make(tmp_path / "b")
    one, other = DatasetManifest.load(tmp_path / "a"), DatasetManifest.load(tmp_path / "b")
    assert one == other
    assert one.digest == other.digest
    assert one.shards[0].sha256 == sha256_file(tmp_path / "a" / "shard-00000.parquet")
    assert one.model_copy(update={"mean_tail_mass": 0.5}).digest != one.digest
