"""The load generator and the judgements made of what it saw, against a gateway that listens."""

import math
from pathlib import Path

import pytest

from tests.conftest import build_tiny_base
from tests.proofs.gateway_overhead import Plan, Sides, overhead
from tests.proofs.gateway_process import answers_left
from tests.proofs.http_load import Load, Outcome, Target, median, run_load
from tests.proofs.soak import at_once, growth, questions
from tests.serving.shop import Running, Shop, serving, slow


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    shop = Shop(build_tiny_base("qwen2"), tmp_path)
    # Answers that no rounding changes, however many are written at once: the likeliest token is ahead of the next by
    # 0.09 nats at least (without `start`, by 0.0000001 in one place).
    shop.add("clinic", 1, "champion", start=2)
    return shop


def asking(server: Running, *models: str) -> Target:
    return questions(models, 6, None, server.url)


def test_callers_ask_on_and_on(shop: Shop) -> None:
    with serving(shop) as server:
        outcomes = run_load(Load(asking(server, "clinic"), 1.0, callers=5, hang_up=0.3))
        assert at_once(outcomes) == 5 and len(outcomes) > 5
        whole = [outcome for outcome in outcomes if not outcome.left]
        assert {outcome.tokens for outcome in whole} == {6}
        assert len({(outcome.body, outcome.text) for outcome in whole}) == 4
        left = [outcome for outcome in outcomes if outcome.left]
        assert left and not any(outcome.problem for outcome in outcomes)
        assert answers_left(server.url) == 0
        # Refusals are lost answers, with the reason.
        refused = run_load(Load(asking(server, "none"), 0.5, callers=1))
        assert refused and all("model_not_found" in outcome.problem for outcome in refused)
        assert len(refused) < 5
    gone = run_load(Load(asking(server, "clinic"), 0.1, callers=1))
    assert "ClientConnector" in gone[0].problem


def test_an_open_loop_does_not_wait(shop: Shop) -> None:
    with serving(shop, max_running=1) as server:
        quick = run_load(Load(asking(server, "clinic"), 1.0, rate=8))
        assert [round(outcome.at * 8) for outcome in quick] == list(range(8))
        with slow(shop, 0.1):
            # Each answer takes 0.6 s and they come one after another: who asked last waits for all before.
            queued = run_load(Load(asking(server, "clinic"), 1.0, rate=8))
        assert len(queued) == 8 and not any(outcome.problem for outcome in queued)
        assert median([outcome.seconds for outcome in queued[-2:]]) > max(2, median([o.seconds for o in quick]))


def test_one_server_against_itself(shop: Shop) -> None:
    with serving(shop) as server:
        target = asking(server, "clinic")
        # Of each answer seven tokens are wanted and six come, which is seen.
        figures = overhead(Sides(target, target, 7), Plan(callers=4, round_s=0.7, rounds=1, warm_up_s=0.2))
    assert not any(math.isnan(value) for value in figures.values())
    assert min(figures["engine_ms_p50_at_half"], figures["gateway_ms_p50_at_half"]) > 0
    # Four callers in either turn of the peak, and a question at least to either side at half of it.
    assert figures["answers_lost"] >= 10


def test_what_both_sides_make(monkeypatch: pytest.MonkeyPatch) -> None:
    # Of times that are given: on a busy machine one server differs from itself by any factor.
    engine, gateway = Target("http://engine", ()), Target("http://gateway", ())
    loads = list[Load]()

    def answered(load: Load) -> list[Outcome]:
        loads.append(load)
        through = load.target is gateway
        if load.callers:
            return [Outcome(0, 0.9, 0.1, 0.06, 7, "")] * (16 if through else 20)
        seconds, first = (0.104, 0.062) if through else (0.1, 0.06)
        return [Outcome(0, 0.0, seconds, first, 7, ""), Outcome(0, 0.1, seconds, math.nan, 6 if through else 7, "")]

    monkeypatch.setattr("tests.proofs.gateway_overhead.run_load", answered)
    figures = overhead(Sides(engine, gateway, 7), Plan(callers=4, round_s=5, rounds=2, warm_up_s=1))
    assert figures["gateway_share_of_engine_throughput"] == pytest.approx(0.8)
    assert figures["gateway_overhead_ms_p50"] == pytest.approx(4)
    assert figures["gateway_overhead_first_token_ms_p50"] == pytest.approx(2)
    assert figures["answers_per_second_at_half"] == 10
    assert figures["answers_lost"] == 2, "one of each round is a token short"
    # Who goes first at the peak changes; at half of it either side has half of the rate.
    assert [load.target for load in loads if load.callers][2:] == [engine, gateway, gateway, engine]
    assert {load.rate for load in loads if not load.callers} == {5}


def test_memory_that_grows_and_memory_that_does_not() -> None:
    steps = [100.0] * 5 + [180.0] * 25
    assert growth(steps) == 0
    assert growth([100 + 0.5 * number for number in range(120)]) > 0.1
    assert math.isnan(growth([100.0] * 8))


def test_streams_at_once() -> None:
    def outcome(at: float, seconds: float) -> Outcome:
        return Outcome(0, at, seconds, 0.1, 1, "")

    assert at_once([outcome(0, 1), outcome(0.5, 1), outcome(1.2, 1)]) == 2
    assert at_once([outcome(0, 1), outcome(1, 1)]) == 1
