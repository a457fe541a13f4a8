"""The scheduler's half of the connector, without vLLM: requests are what it reads of them."""

import time
from types import SimpleNamespace
from typing import Any

import pytest

from cartridge_core.serving.attached_requests import AttachedRequests
from cartridge_core.serving.attachment import PARAMETER, AttachedCartridge, Attachment
from cartridge_core.serving.residency import Residency

KEY = b"k" * 32
A, B = "a" * 64, "b" * 64


def attachment(digest: str = A, num_tokens: int = 10, **changes: Any) -> Attachment:
    attached = AttachedCartridge(digest=digest, num_tokens=num_tokens)
    return Attachment(**{"tenant": "default", "cartridges": (attached,), "expires": time.time() + 60} | changes)


def request(name: str, attached: Attachment | None, length: int = 30, key: bytes = KEY) -> Any:
    parameters = None if attached is None else {PARAMETER: attached.signed(key)}
    return SimpleNamespace(
        request_id=name,
        kv_transfer_params=parameters,
        num_prompt_tokens=length,
        skip_reading_prefix_cache=False,
        cache_salt="the client's",
        block_hashes=[1],
        update_block_hashes=lambda: None,
    )


@pytest.fixture
def requests() -> AttachedRequests:
    return AttachedRequests(KEY, 1, Residency(25))


def loaded(requests: AttachedRequests, name: str, attached: Attachment) -> None:
    requests.admit(request(name, attached))
    assert requests.missing(name, 0) == (10, True)
    requests.order(name, ([1],), 10)
    requests.settle({name}, set())
    requests.hand_over(idle=False)


def test_what_is_not_attached_is_left_alone(requests: AttachedRequests) -> None:
    plain = request("plain", None)
    requests.admit(plain)
    assert (plain.cache_salt, plain.block_hashes) == ("the client's", [1])
    assert requests.missing("plain", 0) == (0, False)


def test_loaded_once_and_then_at_hand(requests: AttachedRequests) -> None:
    first = request("first", attachment())
    requests.admit(first)
    assert (first.cache_salt, first.block_hashes) == (attachment().salt(KEY), [])
    assert requests.missing("first", 0) == (10, True)
    requests.order("first", ([1],), 10)
    (write,) = requests.hand_over(idle=True).writes
    assert (write.front, write.start, write.end, write.loaded) == ((A,), 0, 10, False)
    requests.settle({"first"}, set())
    requests.admit(request("second", attachment()))
    # Eight lie in blocks of an earlier request's.
    assert requests.missing("second", 8) == (2, False)
    requests.order("second", ([1],), 2)
    (write,) = requests.hand_over(idle=False).writes
    assert (write.start, write.end, write.loaded) == (8, 10, True)
    assert requests.missing("second", 12) == (0, False)


@pytest.mark.parametrize(
    "refused",
    [
        request("r", attachment(), key=b"o" * 32),
        request("r", attachment(expires=1.0)),
        request("r", attachment(), length=10),
        SimpleNamespace(**vars(request("r", attachment())) | {"skip_reading_prefix_cache": True}),
    ],
    ids=["forged", "expired", "no prompt", "prompt log-probs"],
)
def test_a_refused_one_is_promised_a_token_that_never_comes(requests: AttachedRequests, refused: Any) -> None:
    requests.admit(refused)
    assert refused.cache_salt not in ("the client's", attachment().salt(KEY))
    assert refused.skip_reading_prefix_cache is False
    assert requests.missing("r", 0) == (1, True)
    requests.order("r", ([1],), 1)
    (write,) = requests.hand_over(idle=True).writes
    assert write.front == ()
    requests.settle({"r"}, {"r"})
    requests.forget("r")
    assert requests.missing("r", 0) == (0, False)


def test_what_failed_in_one_worker_is_let_go_in_all(requests: AttachedRequests) -> None:
    requests.admit(request("first", attachment()))
    requests.order("first", ([1],), 10)
    requests.hand_over(idle=True)
    requests.settle({"first"}, {"first"})
    assert requests.hand_over(idle=True).drop == [(A,)]
    requests.admit(request("second", attachment()))
    assert requests.missing("second", 0) == (10, True)


def test_another_length_than_the_one_held_is_refused(requests: AttachedRequests) -> None:
    loaded(requests, "first", attachment())
    requests.admit(request("second", attachment(num_tokens=12)))
    assert requests.missing("second", 0) == (1, True)


def test_room_is_made_and_kept(requests: AttachedRequests) -> None:
    loaded(requests, "a", attachment())
    loaded(requests, "b", attachment(B, residency="pin"))
    requests.admit(request("c", attachment("c" * 64)))
    requests.order("c", ([1],), 10)
    assert requests.hand_over(idle=False).drop == [(A,)]
    requests.admit(request("d", attachment("d" * 64)))
    assert requests.missing("d", 0) == (None, False)
    requests.settle({"c"}, set())
    assert requests.missing("d", 0) == (10, True)
    requests.admit(request("e", attachment("e" * 64, num_tokens=20)))
    assert requests.missing("e", 0) == (1, True)


def alone(requests: AttachedRequests, residency: str, digest: str = A) -> Any:
    """A request of one token that has nothing in front and only says what becomes of a Cartridge."""
    asked = request(residency, attachment(digest, residency=residency), length=1)
    requests.admit(asked)
    return asked


@pytest.mark.parametrize("residency", ["unpin", "drop", "erase"])
def test_who_lets_go_needs_nothing_in_front(requests: AttachedRequests, residency: str) -> None:
    asked = alone(requests, residency)
    assert requests.missing(residency, 0) == (0, False)
    # What it computes must not be taken for the Cartridge's.
    assert asked.cache_salt not in ("the client's", attachment().salt(KEY))
    orders = requests.hand_over(idle=False)
    assert (orders.writes, orders.drop) == ([], [])


def test_what_is_let_go_goes_at_once_and_is_loaded_again(requests: AttachedRequests) -> None:
    loaded(requests, "first", attachment())
    alone(requests, "drop")
    assert requests.hand_over(idle=True).drop == [(A,)]
    loaded(requests, "second", attachment())


def test_what_is_unpinned_makes_room(requests: AttachedRequests) -> None:
    loaded(requests, "first", attachment(residency="pin"))
    alone(requests, "unpin")
    assert requests.hand_over(idle=False).drop == []
    requests.admit(request("big", attachment(B, num_tokens=20)))
    requests.order("big", ([1],), 20)
    assert requests.hand_over(idle=False).drop == [(A,)]


def test_what_is_erased_goes_with_all_that_it_is_a_part_of_and_its_pin() -> None:
    requests = AttachedRequests(KEY, 1, Residency(100))
    a, b = AttachedCartridge(digest=A, num_tokens=10), AttachedCartridge(digest=B, num_tokens=10)
    loaded(requests, "pinned", attachment(residency="pin"))
    loaded(requests, "other", attachment(B))
    requests.admit(request("both", attachment(cartridges=(b, a))))
    requests.order("both", ([1],), 20)
    requests.settle({"both"}, set())
    requests.hand_over(idle=False)
    alone(requests, "drop")
    assert requests.hand_over(idle=False).drop == [(A,)], "a drop is of the one alone"
    loaded(requests, "again", attachment(residency="pin"))
    alone(requests, "erase")
    assert sorted(requests.hand_over(idle=False).drop) == [(A,), (B, A)]


def test_one_that_is_being_loaded_is_erased_behind_who_waits_for_it(requests: AttachedRequests) -> None:
    requests.admit(request("first", attachment()))
    requests.order("first", ([1],), 10)
    alone(requests, "erase")
    assert requests.hand_over(idle=False).drop == []
    requests.settle({"first"}, set())
    assert requests.hand_over(idle=True).drop == [(A,)]
