from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from cartridge_core.errors import DatasetError
from cartridge_core.selfstudy.conversation import Sample, Targets
from cartridge_core.selfstudy.shard import SCHEMA, read_kept, read_summary, write_shard


def sample(index: int, tokens: int = 0, answer: int = 0, k: int = 3) -> Sample:
    rng = np.random.default_rng(index)
    targets = Targets(
        token_ids=rng.integers(0, 99, tokens, dtype=np.int32),
        assistant_mask=np.arange(tokens) >= tokens - answer,
        topk_ids=rng.integers(0, 99, (answer, k), dtype=np.int32),
        topk_logprobs=-rng.random((answer, k), dtype=np.float32),
        tail_logprob=np.full(answer, -np.inf if index % 2 else -2.0, dtype=np.float32),
    )
    kept = tokens > 0
    return Sample(
        index, "question", "c:0:0-9", 2**63 - 1 - index, "Ask.", "kept" if kept else "question_empty", f"q{index} ö",
        "a" if kept else "", targets if kept else None,
    )  # fmt: skip


SAMPLES = [sample(4, 7, 3), sample(5), sample(6, 5, 4), sample(7, 3, 1)]


def test_kept_samples_come_back_exactly(tmp_path: Path) -> None:
    summary = write_shard(tmp_path / "s.parquet", SAMPLES, "plan")
    columns = read_kept(tmp_path / "s.parquet")
    kept = [s for s in SAMPLES if s.targets is not None]
    assert columns.texts["sample_index"].to_pylist() == [4, 6, 7]
    assert columns.texts["seed"].to_pylist() == [s.seed for s in kept]
    assert columns.texts["question"].to_pylist() == [s.question for s in kept]
    assert (columns.token_counts.tolist(), columns.target_counts.tolist()) == ([7, 5, 3], [3, 4, 1])
    for name in ("token_ids", "assistant_mask", "topk_ids", "topk_logprobs", "tail_logprob"):
        wanted = np.concatenate([getattr(s.targets, name) for s in kept])
        found = getattr(columns, name)
        assert found.dtype == wanted.dtype
        np.testing.assert_array_equal(found, wanted)
    assert read_summary(tmp_path / "s.parquet") == summary
    assert summary.counts == {"question": {"kept": 3, "question_empty": 1}}
    assert (summary.first_sample, summary.num_samples, summary.num_tokens, summary.num_target_tokens) == (4, 4, 15, 8)
    assert summary.tail_mass == pytest.approx(7 * np.exp(-2.0))


def test_dropped_samples_stay_readable(tmp_path: Path) -> None:
    write_shard(tmp_path / "s.parquet", SAMPLES, "plan")
    table = pq.read_table(tmp_path / "s.parquet")
    assert table.schema.equals(SCHEMA)
    dropped = table.to_pylist()[1]
    assert (dropped["outcome"], dropped["question"], dropped["token_ids"]) == ("question_empty", "q5 ö", [])


def test_equal_samples_give_equal_bytes_and_leave_nothing_else(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.parquet", SAMPLES, "plan")
    write_shard(tmp_path / "b.parquet", SAMPLES, "plan")
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.parquet", "b.parquet"]
    assert (tmp_path / "a.parquet").stat().st_mode & 0o777 == 0o644


def test_a_shard_without_a_kept_sample_is_a_shard(tmp_path: Path) -> None:
    write_shard(tmp_path / "s.parquet", [sample(0), sample(1)], "plan")
    columns = read_kept(tmp_path / "s.parquet")
    assert len(columns.token_counts) == 0
    assert columns.topk_ids.shape[0] == 0


def test_what_is_no_shard_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "other.parquet"
    pq.write_table(pq.read_table(_shard(tmp_path)).replace_schema_metadata({}), other)
    cut = tmp_path / "cut.parquet"
    cut.write_bytes((tmp_path / "s.parquet").read_bytes()[:-9])
    for path in (other, cut, tmp_path / "missing.parquet"):
        with pytest.raises(DatasetError, match="is not a shard"):
            read_summary(path)
    with pytest.raises(DatasetError, match="cannot be read"):
        read_kept(cut)


def test_columns_that_do_not_fit_each_other_are_refused(tmp_path: Path) -> None:
    table = pq.read_table(_shard(tmp_path))
    column = table.schema.get_field_index("topk_ids")
    broken = table.set_column(column, "topk_ids", table["token_ids"])
    pq.write_table(broken, tmp_path / "broken.parquet")
    with pytest.raises(DatasetError, match="do not fit each other"):
        read_kept(tmp_path / "broken.parquet")


def _shard(folder: Path) -> Path:
    write_shard(folder / "s.parquet", SAMPLES, "plan")
    return folder / "s.parquet"
