import random

import numpy as np
import pytest
import torch

from cartridge_core.selfstudy.conversation import Targets
from cartridge_core.training.config import TrainingConfig
from cartridge_core.training.packed_rows import fitting, pack_rows
from cartridge_core.training.packing import pack


def example(prompt: int, answer: int, first_id: int = 100) -> Targets:
    length = prompt + answer
    return Targets(
        token_ids=np.arange(first_id, first_id + length, dtype=np.int32),
        assistant_mask=np.arange(length) >= prompt,
        topk_ids=np.arange(answer, dtype=np.int32)[:, None] + first_id + prompt,
        topk_logprobs=np.zeros((answer, 1), dtype=np.float32),
        tail_logprob=np.full(answer, -np.inf, dtype=np.float32),
    )


def test_every_example_lies_in_one_row_and_no_row_overflows() -> None:
    rng = random.Random(7)
    lengths = [rng.randint(1, 50) for _ in range(200)]
    rows = pack(lengths, 50)
    assert sorted(index for row in rows for index in row) == list(range(200))
    assert max(sum(lengths[i] for i in row) for row in rows) <= 50
    # At most a tenth is padding.
    assert len(rows) * 50 <= 1.1 * sum(lengths)


def test_an_example_longer_than_a_row_is_refused() -> None:
    with pytest.raises(ValueError, match="51 tokens"):
        pack([3, 51], 50)


def test_rows_hold_what_is_read_and_what_is_compared() -> None:
    (rows,) = pack_rows([example(3, 2), example(2, 4, 200), example(1, 1, 300)], max_tokens=1000)
    # The last answer token is never read: nothing is predicted from it.
    assert rows.token_ids.tolist() == [[200, 201, 202, 203, 204], [100, 101, 102, 103, 300]]
    assert rows.index.tolist() == [[0, 1, 2, 3, 4], [0, 1, 2, 3, 0]]
    assert rows.segment.tolist() == [[0, 0, 0, 0, 0], [0, 0, 0, 0, 1]]
    predicting = rows.token_ids.flatten()[rows.predicting]
    assert predicting.tolist() == [201, 202, 203, 204, 102, 103, 300]
    assert (rows.teacher.topk_ids[:, 0] == predicting + 1).all()


def test_padding_belongs_to_no_example() -> None:
    (rows,) = pack_rows([example(3, 3), example(2, 2)], max_tokens=1000)
    assert rows.segment.tolist() == [[0, 0, 0, 0, 0], [0, 0, 0, -1, -1]]


def test_a_batch_is_parted_by_tokens() -> None:
    examples = [example(5, 6, 100 * i) for i in range(7)]
    parts = pack_rows(examples, max_tokens=25)
    assert [len(part.token_ids) for part in parts] == [2, 2, 2, 1]
    assert sum(len(part.teacher) for part in parts) == 42


def test_rows_of_few_lengths_for_flex() -> None:
    """Every part is filled to a quarter, half, three quarters or all of what may pass at once."""
    seen = set()
    for batch in range(30):
        rng = np.random.default_rng(batch)
        examples = [example(int(rng.integers(5, 900)), int(rng.integers(1, 900)), i) for i in range(8)]
        parts = pack_rows(examples, max_tokens=2048, kernel="flex")
        for part in parts:
            assert part.token_ids.shape == part.read_ids.shape
            used = int((part.segment >= 0).sum())
            assert used <= part.read_ids.shape[1] < used + 512
            assert torch.equal(part.read_ids[0, part.read_predicting], part.token_ids.flatten()[part.predicting])
            seen.add(part.read_ids.shape[1])
        assert sorted(place for part in parts for place in part.members) == list(range(8))
    assert seen == {512, 1024, 1536, 2048}
    # No example is cut, and a small part ends with a block of FlexAttention's.
    assert [part.token_ids.shape[1] for part in pack_rows([example(5, 2100)], 2048, kernel="flex")] == [2560]
    assert [part.token_ids.shape[1] for part in pack_rows([example(5, 40)], 60, kernel="flex")] == [128]


def test_dense_rows_are_read_without_padding() -> None:
    (rows,) = pack_rows([example(3, 3), example(2, 2, 200)], max_tokens=1000)
    assert rows.read_ids.tolist() == [[100, 101, 102, 103, 104, 200, 201, 202]]
    assert rows.read_ids[0, rows.read_predicting].tolist() == [102, 103, 104, 201, 202]


@pytest.mark.parametrize(
    ("row_tokens", "max_positions", "fits"),
    [
        (None, 1000, [True, True, True]),
        (19, 1000, [True, True, False]),
        (18, 1000, [True, False, False]),
        (None, 38, [True, True, True]),
        (None, 37, [True, True, False]),
    ],
)
def test_what_fits(row_tokens: int | None, max_positions: int, fits: list[bool]) -> None:
    # The last token of an answer is predicted, never read: it needs no place in a row.
    config = TrainingConfig(num_tokens=8, row_tokens=row_tokens)
    assert fitting(np.array([3, 20, 30]), config, max_positions).tolist() == fits
