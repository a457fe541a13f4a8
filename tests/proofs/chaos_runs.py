"""One run of the chain under a fault: started, struck, resumed until it completes, and counted."""

import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import httpx
import pyarrow.parquet as pq
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterParentFlowRunId
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.states import Scheduled

from cartridge_core.cartridge import Cartridge
from cartridge_core.catalog import catalog_session, list_cartridges
from cartridge_core.errors import CartridgeError
from cartridge_core.publishing.artifact import CARTRIDGE_FILES
from cartridge_core.reference.samples import Sample, write_sample
from cartridge_core.reference.world import Scale
from cartridge_core.registry.client import registry_client
from cartridge_core.registry.names import corpus_prefix
from cartridge_core.settings import Settings
from cartridge_core.stages.fit import find_cartridge
from cartridge_core.stages.ingest import find_corpus
from cartridge_core.stages.study import find_dataset
from cartridge_core.storage import get_folder, open_store
from tests.proofs.chaos_faults import AT_STEPS, FAULTS, Strike
from tests.proofs.chaos_services import Stack

T = TypeVar("T")

NUM_CONVERSATIONS, STEPS, NUM_TOKENS = 8, 8, 16
STUDY = (
    f"num_conversations = {NUM_CONVERSATIONS}\nconversations_per_chunk = 2\nchunks_per_shard = 1\nmax_tokens_b = 24\n"
)
TRAINING = "checkpoint_every = 2\neval_every = 4\nbatch_size = 4\nwarmup_steps = 1\n"
PATIENCE = 900.0
"""Seconds after which a run is said to wait for ever."""
MAX_RESUMES = 10
"""How often a failed run is resumed by hand."""


@dataclass(frozen=True)
class Outcome:
    """What became of a run."""

    number: int
    fault: str
    delay: float
    """Seconds between the run's beginning and the fault."""
    seconds: float
    resumes: int
    completed: bool
    problems: tuple[str, ...]
    """What is not exactly once."""
    lost: int
    repeated: int


def carry_out(stack: Stack, number: int, fault: str, delay: float) -> Outcome:
    """Start the run of a number, let the fault strike it, resume it to its end, and look at what it left."""
    corpus, started = f"chaos-{number:03d}", time.monotonic()
    folder = stack.folder / "corpora" / corpus
    write_sample(Sample(corpus, Scale(6, 2, documents=1), 3), folder)
    (folder / "study.toml").write_text(STUDY, encoding="utf-8")
    (folder / "training.toml").write_text(TRAINING, encoding="utf-8")
    parameters = {
        "corpus": corpus,
        "paths": [str(folder / "documents")],
        "questions": str(folder / "questions.jsonl"),
        "num_tokens": NUM_TOKENS,
        "steps": STEPS,
        "study_config": str(folder / "study.toml"),
        "training_config": str(folder / "training.toml"),
        "hand_off_gpu_steps": fault in AT_STEPS,
    }
    with get_client(sync_client=True) as client:
        deployment = patiently(lambda: client.read_deployment_by_name("train-cartridge/train-cartridge"))
        key = f"{corpus}/{time.time()}"
        run = patiently(
            lambda: client.create_flow_run_from_deployment(deployment.id, parameters=parameters, idempotency_key=key)
        )
        _wait(client, run.id, lambda state: state is not StateType.SCHEDULED and state is not StateType.PENDING)
        time.sleep(delay)
        FAULTS[fault](Strike(stack, str(run.id), lambda: _steps(client, run.id)))
        completed, resumes = _resumed(client, run.id, started + PATIENCE)
    problems, lost, repeated = count_up(corpus)
    seconds = round(time.monotonic() - started, 1)
    return Outcome(number, fault, round(delay, 1), seconds, resumes, completed, tuple(problems), lost, repeated)


def patiently(asked: Callable[[], T]) -> T:
    """Ask the server although it may be away for a minute."""
    deadline = time.monotonic() + 120
    while True:
        try:
            return asked()
        except httpx.HTTPError:
            if time.monotonic() > deadline:
                raise
            time.sleep(1)


def _wait(client: SyncPrefectClient, run_id: UUID, enough: Callable[[StateType], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        run = patiently(lambda: client.read_flow_run(run_id))
        if run.state is not None and enough(run.state.type):
            return
        time.sleep(0.5)


def _steps(client: SyncPrefectClient, run_id: UUID) -> list[str]:
    parent = FlowRunFilter(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[run_id]))
    steps: list[FlowRun] = patiently(lambda: client.read_flow_runs(flow_run_filter=parent))
    return [str(step.id) for step in steps]


def _resumed(client: SyncPrefectClient, run_id: UUID, deadline: float) -> tuple[bool, int]:
    """Wait for a run; one that failed is started again, as `prefect flow-run retry` does. Crashes are the reaper's."""
    resumes = 0
    while time.monotonic() < deadline:
        run = patiently(lambda: client.read_flow_run(run_id))
        kind = run.state.type if run.state else None
        if kind is StateType.COMPLETED:
            return True, resumes
        if kind is StateType.FAILED and resumes < MAX_RESUMES:
            patiently(lambda: client.set_flow_run_state(run_id, Scheduled(name="AwaitingRetry"), force=True))
            resumes += 1
        time.sleep(1)
    return False, resumes


def count_up(corpus: str) -> tuple[list[str], int, int]:
    """What of a corpus is not there exactly once; conversations lost and repeated.

    Another run's fault may have taken a store away just now: then it is counted again a little later.
    """
    settings, deadline = Settings(), time.monotonic() + 180
    while True:
        try:
            problems = [*_catalog_problems(settings, corpus), *_version_problems(settings, corpus)]
            lost, repeated = _conversations(settings, corpus)
        except (CartridgeError, OSError) as error:
            if time.monotonic() > deadline:
                return [f"{type(error).__name__}: {error}"], NUM_CONVERSATIONS, 0
            time.sleep(5)
        else:
            return problems, lost, repeated


def _catalog_problems(settings: Settings, corpus: str) -> list[str]:
    with catalog_session(settings, read_only=True) as session:
        entries = list_cartridges(session, settings.tenant, corpus, include_deleted=True)
    if len(entries) != 1:
        return [f"{len(entries)} catalog rows"]
    (entry,) = entries
    fitted = find_cartridge(settings, find_corpus(settings, corpus))
    problems = [] if entry.digest == fitted.digest else ["the catalog's Cartridge is not the trained one"]
    if entry.artifact_key is None or entry.version is None or entry.report_digest is None:
        return [*problems, "the catalog's row is incomplete"]
    with tempfile.TemporaryDirectory() as folder:
        get_folder(open_store(settings.artifact_root), entry.artifact_key, Path(folder), CARTRIDGE_FILES)
        if Cartridge.load(Path(folder)).digest != entry.digest:
            problems.append("the stored files are another Cartridge")
    return problems


def _version_problems(settings: Settings, corpus: str) -> list[str]:
    with registry_client(settings) as client:
        prefix = corpus_prefix(settings.tenant, corpus)
        models = client.search_registered_models(f"name LIKE '{prefix}%'")
        versions = [v for model in models for v in client.search_model_versions(f"name = '{model.name}'")]
    return [] if len(versions) == 1 else [f"{len(versions)} model versions"]


def _conversations(settings: Settings, corpus: str) -> tuple[int, int]:
    dataset = find_dataset(settings, find_corpus(settings, corpus)).product.directory
    seen: Counter[Any] = Counter()
    for shard in dataset.glob("shard-*.parquet"):
        seen.update(pq.read_table(shard, columns=["sample_index"])["sample_index"].to_pylist())
    wanted = range(NUM_CONVERSATIONS)
    return sum(index not in seen for index in wanted), sum(seen.values()) - len(seen)
