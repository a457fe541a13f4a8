"""`python -m tests.proofs.orchestration_overhead`: what Prefect costs the chain beyond the library's own calls.

The same tiny chain, each time in a home of its own: as plain calls, as the flow `train-cartridge` against a real server
in another process, and as the same flow with a heart in every subflow, as Prefect has it by itself. In turns, medians.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cartridge_core.proof import write_proof
from cartridge_core.publishing import promote
from cartridge_core.settings import Settings
from cartridge_core.stages.build import EVALUATION
from cartridge_core.stages.fit import fit
from cartridge_core.stages.grade import grade
from cartridge_core.stages.ingest import ingest
from cartridge_core.stages.questions import exam
from cartridge_core.stages.register import register
from cartridge_core.stages.study import study
from cartridge_core.training.config import TrainingConfig
from tests.conftest import build_tiny_base
from tests.talkative import STUDY, save_talkative, study_toml, write_documents, write_questions

STAGES = ("ingest", "synthesize", "fit", "evaluate", "register", "promote")
TRAINING = TrainingConfig(num_tokens=24, steps=30)
ASKED_SECONDS = 5.0
"""Of overhead over the whole chain, which takes minutes to hours on a real corpus."""


def bare(folder: Path, questions: Path) -> dict[str, float]:
    """Seconds of each library call."""
    settings, seconds = Settings(), {}
    from cartridge_core.benchmarks import load_questions

    def timed(stage: str, work: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        made = work()
        seconds[stage] = time.perf_counter() - started
        return made

    corpus = timed("ingest", lambda: ingest(settings, "wards", [folder]))
    dataset = timed("synthesize", lambda: study(settings, corpus, STUDY, load_questions(questions)))
    cartridge = timed("fit", lambda: fit(settings, corpus, dataset, TRAINING))

    def graded() -> Any:
        asked = exam(settings, corpus, dataset, questions)
        return grade(settings, corpus, {"self_study": cartridge}, asked.questions, asked.benchmark, EVALUATION)

    report = timed("evaluate", graded)
    timed("register", lambda: register(settings, corpus, cartridge, report))
    timed("promote", lambda: promote(settings, "wards", cartridge.digest))
    return seconds | {"chain": sum(seconds.values())}


def flow(folder: Path, questions: Path, study_file: Path, hearts: bool) -> dict[str, float]:
    """Seconds of each subflow as the server has them, and of the whole call."""
    from contextlib import nullcontext

    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterParentFlowRunId

    import flows.train_cartridge as chain

    kept = chain.one_heart
    chain.one_heart = nullcontext if hearts else kept
    try:
        started = time.perf_counter()
        state = chain.train_cartridge(
            "wards",
            [folder],
            questions=questions,
            num_tokens=TRAINING.num_tokens,
            steps=TRAINING.steps,
            study_config=study_file,
            return_state=True,
        )
        seconds = {"chain": time.perf_counter() - started}
    finally:
        chain.one_heart = kept
    state.result()
    with get_client(sync_client=True) as client:
        parent = FlowRunFilter(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[state.state_details.flow_run_id]))
        runs = sorted(client.read_flow_runs(flow_run_filter=parent), key=lambda run: run.created)
    return seconds | {
        stage: (run.end_time - run.start_time).total_seconds() for stage, run in zip(STAGES, runs, strict=True)
    }


def main() -> int:
    """Measure, print the table, write the report; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    told = parser.parse_args()
    started = time.time()
    from prefect.testing.utilities import prefect_test_harness

    os.environ["PREFECT_LOGGING_LEVEL"] = "ERROR"
    seen: dict[str, list[dict[str, float]]] = {"bare": [], "flow": [], "flow_own_hearts": []}
    with tempfile.TemporaryDirectory() as temporary, prefect_test_harness(server_startup_timeout=180):
        place = Path(temporary)
        documents, questions = write_documents(place / "documents"), write_questions(place / "questions.jsonl")
        model = save_talkative(place / "talkative", build_tiny_base("qwen2"))
        study_file = study_toml(place / "study.toml")
        os.environ |= {"CARTRIDGE_BASE_MODEL": str(model), "CARTRIDGE_DEVICE": "cpu"}
        ways: dict[str, Callable[[], dict[str, float]]] = {
            "bare": lambda: bare(documents, questions),
            "flow": lambda: flow(documents, questions, study_file, hearts=False),
            "flow_own_hearts": lambda: flow(documents, questions, study_file, hearts=True),
        }
        for repeat in range(-1, told.repeats):  # the first turn only warms imports and the model
            for way, work in ways.items():
                os.environ["CARTRIDGE_HOME"] = str(place / f"{way}-{repeat}")
                seconds = work()
                if repeat >= 0:
                    seen[way].append(seconds)
    medians = {way: {s: statistics.median(row[s] for row in rows) for s in rows[0]} for way, rows in seen.items()}
    overhead = {stage: medians["flow"][stage] - medians["bare"][stage] for stage in (*STAGES, "chain")}
    figures = {f"{stage}_overhead_seconds": seconds for stage, seconds in overhead.items()}
    figures["between_stages_seconds"] = overhead["chain"] - sum(overhead[stage] for stage in STAGES)
    figures["chain_seconds_bare"] = medians["bare"]["chain"]
    figures["chain_overhead_seconds_with_own_hearts"] = medians["flow_own_hearts"]["chain"] - medians["bare"]["chain"]
    asked = {"chain_overhead_seconds": {"at_most": ASKED_SECONDS}}
    command = f"python -m tests.proofs.orchestration_overhead --repeats {told.repeats}"
    extra: dict[str, Any] = {"seconds": medians}
    return 0 if write_proof("bench-orchestration", command, figures, asked, started, extra=extra).ok else 1


if __name__ == "__main__":
    sys.exit(main())
