from hypothesis import given
from hypothesis import strategies as st

from cartridge_core.serving.residency import Front, Residency

A, B, C = ("a",), ("b",), ("c",)


def load(residency: Residency, front: Front, num_bytes: int) -> list[Front]:
    assert residency.state(front, num_bytes) == "loadable"
    gone = residency.begin(front, num_bytes)
    residency.end(front, loaded=True)
    return gone


def test_the_least_recently_used_goes() -> None:
    residency = Residency(100)
    assert load(residency, A, 40) == load(residency, B, 40) == []
    residency.touch(A)
    assert load(residency, C, 40) == [B]
    assert residency.state(A, 40) == residency.state(C, 40) == "resident"
    assert residency.num_bytes == 80


def test_what_is_being_loaded_stays_and_others_wait() -> None:
    residency = Residency(100)
    residency.begin(A, 60)
    assert residency.state(A, 60) == "loadable"
    assert residency.state(B, 60) == "full"
    residency.begin(A, 60)
    residency.end(A, loaded=True)
    assert residency.state(B, 60) == "full"  # another request still waits for it
    residency.end(A, loaded=True)
    assert load(residency, B, 60) == [A]


def test_a_failed_load_leaves_nothing() -> None:
    residency = Residency(100)
    residency.begin(A, 60)
    residency.end(A, loaded=False)
    assert residency.num_bytes == 0
    assert residency.state(A, 60) == "loadable"


def test_pinned_ones_stay_until_they_are_let_go() -> None:
    residency = Residency(100)
    residency.pin(A, True)
    load(residency, A, 60)
    assert residency.state(B, 60) == "never"
    residency.pin(A, False)
    assert load(residency, B, 60) == [A]
    assert residency.drop(B)
    assert not residency.drop(B)
    assert residency.num_bytes == 0


def test_what_is_being_loaded_goes_when_nobody_waits_for_it_any_more() -> None:
    residency = Residency(100)
    residency.begin(A, 60)
    residency.begin(A, 60)
    assert not residency.drop(A)
    assert not residency.end(A, loaded=True)
    # The first request has it, the second is about to: the workers let it go behind them.
    assert residency.end(A, loaded=True)
    assert residency.num_bytes == 0
    residency.begin(A, 60)
    residency.drop(A)
    residency.pin(A, True)
    assert not residency.end(A, loaded=True), "who pins it wants it again"
    assert residency.state(A, 60) == "resident"


def test_everything_with_a_cartridge_is_found() -> None:
    residency = Residency(100)
    for front in (A, B, (*A, *B)):
        load(residency, front, 20)
    residency.pin(C, True)
    assert sorted(residency.fronts_with("a")) == [A, (*A, *B)]
    assert (residency.fronts_with("c"), residency.fronts_with("x")) == ([C], [])


def test_one_that_never_fits() -> None:
    assert Residency(100).state(A, 101) == "never"


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.booleans(), st.booleans()), max_size=60))
def test_never_more_than_the_bound_and_workers_follow(steps: list[tuple[str, bool, bool]]) -> None:
    sizes = {name: 10 + 7 * i for i, name in enumerate("abcdef")}
    residency, workers, loading = Residency(100), set[Front](), list[Front]()
    for name, loaded, finish in steps:
        front = (name,)
        if finish and loading:
            done = loading.pop(0)
            if residency.end(done, loaded):
                workers.discard(done)
        elif residency.state(front, sizes[name]) == "loadable":
            workers -= set(residency.begin(front, sizes[name]))
            workers.add(front)
            loading.append(front)
        assert residency.num_bytes <= 100
        assert sum(sizes[front[0]] for front in workers) == residency.num_bytes
