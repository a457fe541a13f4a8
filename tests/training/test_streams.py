import numpy as np

from cartridge_core.training.conversation_stream import ConversationStream
from cartridge_core.training.text_windows import WindowStream, covering_windows


def test_each_epoch_holds_every_conversation_once_in_another_order() -> None:
    examples = list(range(10))  # the stream does not look at what it hands out
    stream = ConversationStream(examples, batch_size=4, seed=1)  # type: ignore[arg-type]
    drawn = [example for step in range(10) for example in stream.batch(step)]
    epochs = [drawn[start : start + 10] for start in range(0, 40, 10)]
    assert all(sorted(epoch) == examples for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_a_batch_depends_on_the_step_alone() -> None:
    examples = list(range(10))
    one, other = (ConversationStream(examples, batch_size=4, seed=1) for _ in range(2))  # type: ignore[arg-type]
    forward = [one.batch(step) for step in range(8)]
    assert [other.batch(step) for step in reversed(range(8))] == forward[::-1]
    assert ConversationStream(examples, batch_size=4, seed=2).batch(0) != forward[0]  # type: ignore[arg-type]


def test_a_batch_is_never_larger_than_the_study() -> None:
    assert len(ConversationStream(list(range(3)), batch_size=8, seed=1).batch(5)) == 3  # type: ignore[arg-type]


def test_windows_are_random_reproducible_and_reach_both_ends() -> None:
    stream = WindowStream(list(range(100)), window_tokens=20, batch_size=8, seed=1)
    starts = [int(window.token_ids[0]) for step in range(50) for window in stream.batch(step)]
    assert starts[:8] == [int(window.token_ids[0]) for window in stream.batch(0)]
    assert starts[:8] != starts[8:16]
    assert len(set(starts)) > 50
    # Each end is seen half as often as the middle at least; without the margin it would be a twentieth.
    seen = np.zeros(100)
    for start in starts:
        seen[start : start + 20] += 1
    assert seen.min() > 0.4 * seen.mean()


def test_a_window_predicts_all_but_its_first_token() -> None:
    (window,) = WindowStream([7, 8, 9], window_tokens=20, batch_size=1, seed=1).batch(0)
    assert window.token_ids.tolist() == [7, 8, 9]
    assert window.assistant_mask.tolist() == [False, True, True]
    assert window.topk_ids.tolist() == [[8], [9]]
    assert window.topk_logprobs.tolist() == [[0.0], [0.0]]
    assert np.isneginf(window.tail_logprob).all()


def test_covering_windows_predict_every_token() -> None:
    windows = covering_windows(list(range(50)), window_tokens=12, most=100)
    predicted = {int(token) for window in windows for token in window.topk_ids[:, 0]}
    assert predicted == set(range(1, 50))
    assert all(len(window.token_ids) == 12 for window in windows)
    assert len(covering_windows(list(range(500)), window_tokens=12, most=5)) == 5
    assert [w.token_ids.tolist() for w in covering_windows([1, 2, 3], window_tokens=12, most=5)] == [[1, 2, 3]]


def test_with_weights_an_epoch_holds_each_conversation_as_often_as_its_weight_says() -> None:
    weights = np.array([0.25, 0.5, 1.0, 1.0, 2.25])
    stream = ConversationStream(list(range(5)), batch_size=5, seed=1, weights=weights)  # type: ignore[arg-type]
    epochs = np.array([np.bincount(stream.batch(step), minlength=5) for step in range(400)])  # type: ignore[arg-type]
    assert (epochs.sum(axis=1) == 5).all()
    assert (epochs >= np.floor(weights)).all()
    assert (epochs <= np.ceil(weights)).all()
    assert np.abs(epochs.mean(axis=0) - weights).max() < 0.1


def test_a_weighted_batch_depends_on_the_step_alone_and_its_order_is_random() -> None:
    weights = np.linspace(0.5, 1.5, 10)
    one, other = (ConversationStream(list(range(10)), 4, seed=1, weights=weights) for _ in range(2))  # type: ignore[arg-type]
    forward = [one.batch(step) for step in range(8)]
    assert [other.batch(step) for step in reversed(range(8))] == forward[::-1]
    firsts = {one.batch(5 * step)[0] for step in range(60)}
    assert len(firsts) > 5


def test_equal_weights_leave_no_conversation_out() -> None:
    stream = ConversationStream(list(range(10)), 10, seed=1, weights=np.full(10, 0.3))  # type: ignore[arg-type]
    assert all(sorted(stream.batch(step)) == list(range(10)) for step in range(50))
