import random

import numpy as np
import pytest

from cartridge_core.selfstudy.conversation import Targets
from cartridge_core.training.packed_rows import pack_rows
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
