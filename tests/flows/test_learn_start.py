"""The flow `learn-start`: from studied corpora to a start that a Cartridge of another one begins with."""

import httpx
import pytest
from prefect.exceptions import ParameterTypeError

from flows.fit_cartridge import fit_cartridge
from flows.ingest_corpus import ingest_corpus
from flows.learn_start import learn_start
from flows.synthesize_conversations import synthesize_conversations
from tests.talkative import Workplace


def test_a_start_is_learnt_once_and_begun_with(prefect_server: str, workplace: Workplace) -> None:
    for corpus in ("nurse", "room", "ward"):
        ingest_corpus(corpus, [workplace.documents / f"{corpus}.md"])
        synthesize_conversations(corpus, config=workplace.study_file)
    size = {"num_tokens": 24, "rounds": 2, "steps": 6}
    start = learn_start(["room", "ward"], **size)
    assert (start["num_tokens"], start["corpora"], start["cached"]) == (24, ["room", "ward"], False)
    assert learn_start(["room", "ward"], **size) == start | {"cached": True}
    begun = fit_cartridge("nurse", num_tokens=24, steps=6, init_from=start["digest"])
    assert begun["digest"] not in (start["digest"], fit_cartridge("nurse", num_tokens=24, steps=6)["digest"])
    with pytest.raises(ParameterTypeError, match="corpora"):
        learn_start(["room"], **size)

    runs = httpx.post(f"{prefect_server}/flow_runs/filter", json={}).json()
    assert "learn start room, ward · talkative · p=24" in {run["name"] for run in runs}
    artifacts = httpx.post(f"{prefect_server}/artifacts/filter", json={}).json()
    assert {"learn-start", "learn-start-result"} <= {artifact["key"] for artifact in artifacts}
