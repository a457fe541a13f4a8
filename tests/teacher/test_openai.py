"""Teachers behind HTTP, against servers that answer as vLLM does; the real one is in tests/serving/vllm."""

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from itertools import chain
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from pydantic import SecretStr

from cartridge_core.errors import TeacherError
from cartridge_core.inference.generate import GenerationConfig
from cartridge_core.model_description import ModelDescription, describe_model
from cartridge_core.models import BaseModel, load_base_model
from cartridge_core.rendering import prefix_token_ids, render_turns
from cartridge_core.teacher.completion import Completion, read_generation
from cartridge_core.teacher.openai import OpenAIConfig, OpenAITeacher
from cartridge_core.teacher.protocol import Message, Teacher
from tests.teacher.servers import Stub, stub, stubs

MODEL = "tiny-qwen2"
TEXTS = [f"From: Wards\nThe ward of patient {number} is green." for number in range(8)]
CONVERSATIONS: list[list[Message]] = [[{"role": "user", "content": f"Question {number}?"}] for number in range(6)]
SEEDS = range(6)
CONFIG = GenerationConfig(max_new_tokens=5, temperature=1.0, top_k_logprobs=4)
IMPATIENT = OpenAIConfig(timeout_s=3.0, attempts=3)


@pytest.fixture(scope="module")
def model(tiny_base: Callable[[str], BaseModel]) -> ModelDescription:
    base = tiny_base("qwen2")
    return ModelDescription(base.identity, base.tokenizer, base.max_positions, frozenset(range(0, 400, 6)))


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Stub]]:
    with stubs(tmp_path_factory.mktemp("two"), 2, model=MODEL) as servers:
        yield servers


def test_turns_are_asked_in_the_same_tokens_as_of_the_in_process_teacher(
    model: ModelDescription, two: list[Stub]
) -> None:
    before = len(two[0].written())
    with OpenAITeacher(model, [two[0].url]) as teacher:
        as_protocol: Teacher = teacher
        answers = as_protocol.ask(TEXTS[0], CONVERSATIONS, CONFIG, SEEDS)
        again = teacher.ask(TEXTS[0], CONVERSATIONS[::-1], CONFIG, SEEDS[::-1])[::-1]
        greedy = teacher.ask(TEXTS[0], CONVERSATIONS, CONFIG.model_copy(update={"temperature": 0.0}), SEEDS)
        assert teacher.ask(TEXTS[0], [], CONFIG, []) == []
    assert (teacher.kind, teacher.identity) == ("openai", model.identity)
    head = prefix_token_ids(model.tokenizer, TEXTS[0])
    turns = [render_turns(model.tokenizer, turn, add_generation_prompt=True).token_ids for turn in CONVERSATIONS]
    asked = [turn[:3] for turn in two[0].written()[before : before + 6]]
    assert sorted(asked) == sorted([[*head, *turn], seed, 4] for turn, seed in zip(turns, SEEDS, strict=True))
    for one, other, likeliest in zip(answers, again, greedy, strict=True):
        assert (one.token_ids, one.text) == (other.token_ids, other.text)
        length = len(one.token_ids)
        assert one.topk_ids.shape == one.topk_logprobs.shape == (length, 4)
        assert one.finished == (one.token_ids[-1] % 6 == 0)
        assert length == 5 or one.finished
        said = list(one.token_ids[:-1] if one.finished else one.token_ids)
        assert one.text == model.tokenizer.decode(said, skip_special_tokens=True)
        mass = np.exp(one.topk_logprobs, dtype=np.float64).sum(axis=1) + np.exp(one.tail_logprob, dtype=np.float64)
        np.testing.assert_allclose(mass, 1, atol=1e-6)
        assert (np.diff(one.topk_logprobs) <= 0).all()
        assert likeliest.token_ids == tuple(likeliest.topk_ids[:, 0])
    assert any(one.token_ids != likeliest.token_ids for one, likeliest in zip(answers, greedy, strict=True))
    assert len({answer.finished for answer in answers}) == 2, "the test should see both"


def test_texts_are_spread_and_one_text_stays_with_one_server(model: ModelDescription, two: list[Stub]) -> None:
    before = [len(server.written()) for server in two]
    with OpenAITeacher(model, [server.url for server in two]) as teacher:
        spread = [teacher.ask(text, CONVERSATIONS, CONFIG, SEEDS) for text in TEXTS]
    heads = [tuple(prefix_token_ids(model.tokenizer, text)) for text in TEXTS]
    told = [
        {head for head in heads for prompt, *_ in server.written()[count:] if tuple(prompt[: len(head)]) == head}
        for server, count in zip(two, before, strict=True)
    ]
    assert not told[0] & told[1] and told[0] | told[1] == set(heads)
    assert min(map(len, told)) >= 2
    with OpenAITeacher(model, [two[1].url]) as teacher:
        alone = [teacher.ask(text, CONVERSATIONS, CONFIG, SEEDS) for text in TEXTS]
    for one, other in zip(chain(*spread), chain(*alone), strict=True):
        assert one.token_ids == other.token_ids
        np.testing.assert_array_equal(one.topk_logprobs, other.topk_logprobs)


def test_no_more_is_asked_at_once_than_allowed(model: ModelDescription, tmp_path: Path) -> None:
    with stub(tmp_path, model=MODEL, pause_s=0.2) as server:
        for most in (2, 128):
            before = len(server.written())
            with OpenAITeacher(model, [server.url], config=OpenAIConfig(max_outstanding=most)) as teacher:
                teacher.ask(TEXTS[0], CONVERSATIONS, CONFIG, SEEDS)
            at_once = max(busy for *_, busy in server.written()[before:])
            assert at_once == 2 if most == 2 else at_once > 2


@pytest.mark.parametrize("trouble", [{"pause_s": 30.0}, {"status": 503}, {"finish_reason": "abort"}, {"dead": True}])
def test_another_server_takes_over(
    model: ModelDescription, two: list[Stub], tmp_path: Path, trouble: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    dead = trouble.pop("dead", False)
    with stub(tmp_path, model=MODEL, **trouble) as bad:
        if dead:
            bad.kill()
        with OpenAITeacher(model, [bad.url, two[0].url], config=IMPATIENT) as teacher:
            answers = [teacher.ask(text, CONVERSATIONS, CONFIG, SEEDS) for text in TEXTS]
    with OpenAITeacher(model, [two[0].url]) as teacher:
        wanted = [teacher.ask(text, CONVERSATIONS, CONFIG, SEEDS) for text in TEXTS]
    assert [a.token_ids for a in chain(*answers)] == [a.token_ids for a in chain(*wanted)]
    assert f"Teacher {bad.url}" in caplog.text


def test_a_server_that_comes_back_is_looked_at_again(model: ModelDescription, tmp_path: Path) -> None:
    with stub(tmp_path / "1", model=MODEL) as first, OpenAITeacher(model, [first.url], config=IMPATIENT) as teacher:
        wanted = teacher.ask(TEXTS[0], CONVERSATIONS, CONFIG, SEEDS)
        port = int(first.url.rsplit(":", 1)[1])
        first.kill()
        with pytest.raises(TeacherError, match=r"in 3 attempts.*does not answer.*goes on from there"):
            teacher.ask(TEXTS[0], CONVERSATIONS, CONFIG, SEEDS)
        with stub(tmp_path / "2", model=MODEL, port=port):
            again = teacher.ask(TEXTS[0], CONVERSATIONS, CONFIG, SEEDS)
        assert [one.token_ids for one in again] == [one.token_ids for one in wanted]
        with (
            stub(tmp_path / "3", model="another", port=port),
            pytest.raises(TeacherError, match=r"(serves 'another' and not|The model) .tiny-qwen2"),
        ):
            teacher.ask(TEXTS[0], CONVERSATIONS, CONFIG, SEEDS)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"model": "another"}, r"serves 'another' and not 'tiny-qwen2'.*--served-model-name tiny-qwen2"),
        ({"parent": "base"}, "serves no model"),
        ({"key": "sesame"}, r"refuses the key \(HTTP 401\).*CARTRIDGE_TEACHER_KEY"),
        ({"max_logprobs": 3}, r"logprobs of 4, which is greater than max allowed: 3.*--max-logprobs"),
        ({"window": 60}, r"takes 60 tokens, and a conversation needs 105.*--max-model-len"),
        ({"logprobs_mode": "raw_logits"}, r"add up to .*--logprobs-mode raw_logprobs"),
        ({"logprobs_mode": "processed_logprobs"}, r"depend on the temperature.*--logprobs-mode raw_logprobs"),
        ({"names": "{}"}, "by their text"),
    ],
)
def test_a_server_that_cannot_teach_is_refused_before_the_study(
    model: ModelDescription, two: list[Stub], tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    with (
        stub(tmp_path, **{"model": MODEL, **options}) as bad,
        OpenAITeacher(model, [two[0].url, bad.url]) as teacher,
        pytest.raises(TeacherError, match=said) as caught,
    ):
        teacher.check(CONFIG, context_tokens=100)
    assert bad.url in str(caught.value)


@pytest.mark.parametrize("options", [{"model": "mine", "root": MODEL}, {"model": "/m/x", "root": f"/m/{MODEL}/"}])
def test_a_model_is_known_by_its_root_too(model: ModelDescription, tmp_path: Path, options: dict[str, str]) -> None:
    with stub(tmp_path, **options) as server, OpenAITeacher(model, [server.url]) as teacher:
        teacher.check(CONFIG, context_tokens=100)
        assert teacher.ask(TEXTS[0], CONVERSATIONS[:1], CONFIG, [1])


def test_a_server_that_is_down_is_told_of_and_all_of_them_are_an_error(
    model: ModelDescription, two: list[Stub], caplog: pytest.LogCaptureFixture
) -> None:
    nobody = ["http://127.0.0.1:9", "http://127.0.0.1:10"]
    with OpenAITeacher(model, [nobody[0], two[0].url]) as teacher:
        teacher.check(CONFIG, context_tokens=100)
    assert "http://127.0.0.1:9 does not answer" in caplog.text
    with (
        OpenAITeacher(model, nobody) as teacher,
        pytest.raises(TeacherError, match=r":9 does not answer.*; .*:10 does not answer.*Start vLLM"),
    ):
        teacher.check(CONFIG, context_tokens=100)
    with (
        OpenAITeacher(model, [f"{two[0].url}/v1"]) as teacher,
        pytest.raises(TeacherError, match=r"HTTP 404.*without /v1"),
    ):
        teacher.check(CONFIG, context_tokens=100)


def test_a_text_that_does_not_fit_is_refused(model: ModelDescription, two: list[Stub]) -> None:
    with (
        OpenAITeacher(model, [two[0].url]) as teacher,
        pytest.raises(TeacherError, match=r"1024 positions.*chunk\.max_tokens"),
    ):
        teacher.ask("ward " * 2000, CONVERSATIONS, CONFIG, SEEDS)


def test_the_key_is_sent_and_never_told(
    model: ModelDescription, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with (
        stub(tmp_path, model=MODEL, key="sesame-open") as server,
        OpenAITeacher(model, [server.url], SecretStr("sesame-open"), IMPATIENT) as teacher,
    ):
        teacher.check(CONFIG, context_tokens=100)
        assert teacher.ask(TEXTS[0], CONVERSATIONS, CONFIG, SEEDS)
        assert "sesame-open" not in repr(vars(teacher))
        server.kill()
        with pytest.raises(TeacherError) as gone:
            teacher.ask(TEXTS[0], CONVERSATIONS, CONFIG, SEEDS)
    assert "sesame-open" not in caplog.text + str(gone.value)


def test_closing_wakes_whoever_still_waits(model: ModelDescription, tmp_path: Path) -> None:
    ended: list[BaseException] = []

    def wait(teacher: OpenAITeacher) -> None:
        try:
            teacher.ask(TEXTS[0], CONVERSATIONS, CONFIG, SEEDS)
        except BaseException as error:
            ended.append(error)

    with stub(tmp_path, model=MODEL, pause_s=60.0) as server:
        with OpenAITeacher(model, [server.url]) as teacher:
            thread = threading.Thread(target=wait, args=(teacher,))
            thread.start()
            time.sleep(0.5)
        thread.join(5)
        assert not thread.is_alive() and len(ended) == 1
        with pytest.raises(CancelledError):
            teacher.ask(TEXTS[0], CONVERSATIONS, CONFIG, SEEDS)


def test_a_reply_of_vllm_s_is_read_and_the_stub_s_has_its_form(
    model: ModelDescription, two: list[Stub], tiny_base: Callable[[str], BaseModel]
) -> None:
    recorded = json.loads(Path(__file__).with_name("vllm_reply.json").read_text())
    asked = Completion([1, 2], [5], 24, 0.0, 3, 0)
    read = read_generation(recorded, asked, model.tokenizer)
    assert read is not None and read.finished and read.token_ids[-1] == 5
    assert read.topk_ids.shape == (len(read.token_ids), 3)
    assert read.token_ids == tuple(read.topk_ids[:, 0])
    body = {"model": MODEL, **asked.body()}
    stubbed = httpx.post(f"{two[0].url}/v1/completions", json=body).json()

    def form(value: Any) -> Any:
        if isinstance(value, dict) and not any(name.startswith("token_id:") for name in value):
            return {name: form(part) for name, part in value.items()}
        return [form(value[0])] if isinstance(value, list) and value else type(value).__name__

    one, other = form(stubbed), form(recorded)
    for reply in (one, other):
        reply["choices"][0].pop("stop_reason")  # the token, where one ended it
        reply.pop("system_fingerprint")  # a version
    assert one == other


def test_a_description_knows_the_ends_of_the_loaded_model(
    tiny_base: Callable[[str], BaseModel], tmp_path: Path
) -> None:
    assert describe_model("reference").eos_ids == load_base_model("reference", device="cpu").eos_ids
    base = tiny_base("llama")
    base.model.save_pretrained(tmp_path)
    base.tokenizer.save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [3, 9]}')
    assert describe_model(tmp_path).eos_ids == load_base_model(tmp_path, device="cpu").eos_ids > {3, 9}
    (tmp_path / "generation_config.json").unlink()
    assert describe_model(tmp_path).eos_ids == load_base_model(tmp_path, device="cpu").eos_ids
