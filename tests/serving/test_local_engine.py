"""The embedded engine: what it writes is what `generate` writes, for many at once, and it stops when it should."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cartridge_core.inference.generate import GenerationConfig, generate
from cartridge_core.inference.score import token_logprobs
from cartridge_core.models import BaseModel
from cartridge_core.prefix_kv import PrefixKV
from cartridge_core.serving.engine import GenerationRequest, Piece
from cartridge_core.serving.errors import ContextLengthError, DamagedCartridgeError, EngineError, OverloadedError
from cartridge_core.serving.local_engine import LocalEngine, LocalEngineConfig
from cartridge_core.serving.sampling_params import SamplingParams
from cartridge_core.settings import Settings
from tests.samples import cartridge_of
from tests.serving.test_fetching import stored

GREEDY = SamplingParams(max_tokens=12, temperature=0)


class Place:
    """A store with two Cartridges of the tiny model."""

    def __init__(self, base: BaseModel, folder: Path) -> None:
        self.base = base
        self.settings = Settings(home=folder / "home")
        made = [cartridge_of(base, list(range(start, start + 9))) for start in (30, 60)]
        self.cartridges = [stored(self.settings, one, folder / one.digest) for one in made]
        self.prefixes: list[PrefixKV | None] = [one.prefix() for one in made]

    def expected(self, prefix: int | None, prompt: list[int], count: int = 12) -> Any:
        front = None if prefix is None else self.prefixes[prefix]
        return generate(self.base, front, [prompt], GenerationConfig(max_new_tokens=count))[0]

    def request(self, prefix: int | None, prompt: list[int], **more: Any) -> GenerationRequest:
        front = () if prefix is None else (self.cartridges[prefix],)
        sampling = replace(GREEDY, **{k: v for k, v in more.items() if k != "n"})
        return GenerationRequest("r", "default", tuple(prompt), sampling, front, more.get("n", 1))

    def run(self, work: Callable[[LocalEngine], Awaitable[None]], **config: Any) -> None:
        async def running() -> None:
            engine = LocalEngine(self.base, self.settings, LocalEngineConfig(**config))
            await engine.start()
            try:
                async with asyncio.timeout(60):
                    await work(engine)
            finally:
                await engine.close()

        asyncio.run(running())


@pytest.fixture
def place(tiny_base: Callable[[str], BaseModel], tmp_path: Path) -> Place:
    return Place(tiny_base("qwen2"), tmp_path)


async def collect(engine: LocalEngine, request: GenerationRequest) -> list[list[Piece]]:
    answers: list[list[Piece]] = [[] for _ in range(request.n)]
    async for piece in engine.generate(request):
        answers[piece.index].append(piece)
    return answers


async def text(engine: LocalEngine, request: GenerationRequest) -> str:
    return "".join(piece.text for piece in (await collect(engine, request))[0])


def test_many_at_once_write_what_each_writes_alone(place: Place) -> None:
    wanted = [(front, [40 + number, 7, 9 + number]) for number in range(6) for front in (None, 0, 1)]

    async def work(engine: LocalEngine) -> None:
        requests = [place.request(front, prompt) for front, prompt in wanted]
        answers = await asyncio.gather(*(collect(engine, request) for request in requests))
        for (front, prompt), (pieces,) in zip(wanted, answers, strict=True):
            expected = place.expected(front, prompt)
            assert "".join(piece.text for piece in pieces) == expected.text
            assert sum(piece.num_tokens for piece in pieces) == len(expected.token_ids)
            assert pieces[-1].finish_reason == ("stop" if expected.finished else "length")
            assert all(piece.finish_reason is None for piece in pieces[:-1])
        assert engine.cache_counts().loads == 2

    place.run(work, max_running=7)


def test_tokens_come_as_they_are_made_and_others_are_served_meanwhile(place: Place) -> None:
    async def work(engine: LocalEngine) -> None:
        long = engine.generate(place.request(0, [41, 42], max_tokens=900))
        first = await anext(long)
        assert first.finish_reason is None
        health = await engine.health()
        assert (health.ready, health.running) == (True, 1)
        # A short one behind another Cartridge ends while the long one goes on.
        assert await text(engine, place.request(1, [43, 44], max_tokens=4)) == place.expected(1, [43, 44], 4).text
        assert (await engine.health()).running == 1
        await long.aclose()  # type: ignore[attr-defined]

    place.run(work)


def test_a_cancelled_request_stops(place: Place) -> None:
    # At this speed nothing would have ended by itself when the test looks.
    handle = place.base.model.register_forward_pre_hook(lambda *arguments: time.sleep(0.02))

    async def work(engine: LocalEngine) -> None:
        requests = [place.request(0, [41, number], max_tokens=990) for number in (41, 42, 43)]
        tasks = [asyncio.create_task(collect(engine, request)) for request in requests]
        waiting = asyncio.create_task(collect(engine, place.request(1, [9], max_tokens=990)))
        while (await engine.health()).running < 3:
            await asyncio.sleep(0.001)
        for task in (*tasks, waiting):
            task.cancel()
        await asyncio.gather(*tasks, waiting, return_exceptions=True)
        for _ in range(200):
            health = await engine.health()
            if health.running + health.waiting == 0:
                break
            await asyncio.sleep(0.01)
        assert (health.running, health.waiting) == (0, 0)
        assert all(resident.in_use == 0 for resident in await engine.residents())
        assert await text(engine, place.request(0, [5])) == place.expected(0, [5]).text

    try:
        place.run(work, max_running=3)
    finally:
        handle.remove()


def test_a_seed_decides_whatever_else_runs(place: Place) -> None:
    async def work(engine: LocalEngine) -> None:
        request = place.request(0, [50, 51, 52], temperature=1.0, seed=11, n=3, max_tokens=16)

        async def texts(wanted: GenerationRequest) -> list[str]:
            return ["".join(piece.text for piece in answer) for answer in await collect(engine, wanted)]

        alone = await texts(request)
        crowd = [place.request(0, [60 + i, 3], temperature=1.0, max_tokens=30) for i in range(5)]
        together, *_ = await asyncio.gather(texts(request), *(texts(one) for one in crowd))
        assert together == alone
        assert len(set(alone)) == 3
        assert await texts(replace(request, sampling=replace(request.sampling, seed=12))) != alone
        assert (
            await texts(replace(request, sampling=replace(request.sampling, temperature=0.0)))
            == [place.expected(0, [50, 51, 52], 16).text] * 3
        )

    place.run(work)


def test_logprobs_are_the_models(place: Place) -> None:
    prompt = [50, 51, 52]

    async def work(engine: LocalEngine) -> None:
        (pieces,) = await collect(engine, place.request(0, prompt, logprobs=3))
        (bare,) = await collect(engine, place.request(0, prompt, logprobs=0))
        said = [logprob for piece in pieces for logprob in piece.logprobs]
        expected = place.expected(0, prompt)
        written = [token for token in expected.token_ids if token not in place.base.eos_ids]
        scores = token_logprobs(
            place.base, place.prefixes[0], [prompt + written], [[False] * len(prompt) + [True] * len(written)]
        )[0]
        torch.testing.assert_close(torch.tensor([one.logprob for one in said]), scores, atol=1e-4, rtol=0)
        assert [one.token for one in said] == [place.base.tokenizer.decode([token]) for token in written]
        for one in said:
            assert one.top[0] == (one.token, pytest.approx(one.logprob))
            assert len(one.top) == 3 and one.top[0][1] >= one.top[1][1] >= one.top[2][1]
        assert all(one.top == () for piece in bare for one in piece.logprobs)

    place.run(work)


def test_a_stop_text_ends_the_answer(place: Place) -> None:
    whole = place.expected(1, [77, 78]).text
    stop = whole[3:5]

    async def work(engine: LocalEngine) -> None:
        (pieces,) = await collect(engine, place.request(1, [77, 78], stop=(stop,)))
        assert "".join(piece.text for piece in pieces) == whole[: whole.index(stop)]
        assert pieces[-1].finish_reason == "stop"
        assert sum(piece.num_tokens for piece in pieces) < 12

    place.run(work)


def test_what_does_not_fit_or_does_not_verify_is_refused_and_others_go_on(place: Place) -> None:
    async def work(engine: LocalEngine) -> None:
        with pytest.raises(ContextLengthError):
            await text(engine, place.request(0, [7] * 1000, max_tokens=16))
        file = Path(place.settings.artifact_root, place.cartridges[0].artifact_key, "cartridge.safetensors")
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
        with pytest.raises(DamagedCartridgeError):
            await text(engine, place.request(0, [7]))
        assert await text(engine, place.request(1, [7])) == place.expected(1, [7]).text

    place.run(work)


def test_too_many_waiting(place: Place) -> None:
    async def work(engine: LocalEngine) -> None:
        tasks = []
        for _ in range(3):
            tasks.append(asyncio.create_task(text(engine, place.request(None, [5], max_tokens=900))))
            while not (await engine.health()).running:
                await asyncio.sleep(0.001)
        await asyncio.sleep(0)
        assert (await engine.health()).waiting == 2
        with pytest.raises(OverloadedError) as refusal:
            await text(engine, place.request(None, [5]))
        assert (refusal.value.status, refusal.value.retry_after) == (503, 1.0)
        for task in tasks:
            task.cancel()

    place.run(work, max_running=1, max_waiting=2)


def test_a_failure_of_the_machine_ends_its_batch_only(place: Place) -> None:
    def fail(*arguments: Any) -> None:
        raise RuntimeError("out of memory")

    async def work(engine: LocalEngine) -> None:
        handle = place.base.model.register_forward_pre_hook(fail)
        try:
            with pytest.raises(EngineError, match="failed while it wrote"):
                await text(engine, place.request(0, [7, 8]))
            with pytest.raises(EngineError):
                await text(engine, place.request(0, [7]))
        finally:
            handle.remove()
        assert (await engine.health()).ready
        assert await text(engine, place.request(0, [7])) == place.expected(0, [7]).text

    place.run(work)


def test_closing_tells_those_who_wait(place: Place) -> None:
    async def work(engine: LocalEngine) -> None:
        task = asyncio.create_task(text(engine, place.request(0, [7], max_tokens=900)))
        while not (await engine.health()).running:
            await asyncio.sleep(0.001)
        await engine.close()
        with pytest.raises(EngineError, match="has stopped"):
            await task
        assert not (await engine.health()).ready
        with pytest.raises(EngineError):
            await text(engine, place.request(0, [7]))

    place.run(work)
