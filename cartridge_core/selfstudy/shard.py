"""Shards: parquet files that hold the samples of a few chunks each, dropped ones included."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from cartridge_core.atomic_file import atomic_file
from cartridge_core.errors import DatasetError
from cartridge_core.selfstudy.conversation import Sample, Targets

_SUMMARY_KEY = b"cartridge.summary"
_LISTS: dict[str, tuple[pa.DataType, Callable[[Targets], npt.NDArray[Any]]]] = {
    "token_ids": (pa.int32(), lambda targets: targets.token_ids),
    "assistant_mask": (pa.bool_(), lambda targets: targets.assistant_mask),
    "topk_ids": (pa.int32(), lambda targets: targets.topk_ids),
    "topk_logprobs": (pa.float32(), lambda targets: targets.topk_logprobs),
    "tail_logprob": (pa.float32(), lambda targets: targets.tail_logprob),
}
_SCALARS: dict[str, pa.DataType] = {
    "sample_index": pa.int64(),
    "family": pa.string(),
    "chunk_id": pa.string(),
    "seed": pa.int64(),
    "seed_prompt": pa.string(),
    "outcome": pa.string(),
    "question": pa.string(),
    "answer": pa.string(),
}
SCHEMA = pa.schema([*_SCALARS.items(), *((name, pa.list_(kind)) for name, (kind, _) in _LISTS.items())])
"""One row a sample. The lists of a dropped sample are empty; `topk_*` are `[m, k]` row by row."""


class ShardSummary(BaseModel):
    """What a shard says about itself, so that nobody has to read it to count."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    plan_digest: str
    """The study it belongs to."""
    first_sample: int
    """Index of its first sample."""
    num_samples: int
    """Samples in it; their indices follow each other."""
    counts: dict[str, dict[str, int]]
    """Samples by family and outcome."""
    num_tokens: int
    """Tokens of the kept conversations."""
    num_target_tokens: int
    """Tokens of their answers."""
    tail_mass: float
    """Sum over answer tokens of the probability outside the top k."""


def shard_file(index: int) -> str:
    """Name of the index-th shard."""
    return f"shard-{index:05d}.parquet"


def write_shard(path: Path, samples: Sequence[Sample], plan_digest: str) -> ShardSummary:
    """Write samples to a file that appears whole or not at all. Equal samples give equal bytes.

    Args:
        path: Where the file appears.
        samples: In the order of their indices.
        plan_digest: Digest of the study's plan.
    """
    summary = _summarise(samples, plan_digest)
    targets = [sample.targets for sample in samples]
    columns = [pa.array([getattr(sample, name) for sample in samples], kind) for name, kind in _SCALARS.items()]
    columns += [_list_column(targets, kind, values) for kind, values in _LISTS.values()]
    schema = SCHEMA.with_metadata({_SUMMARY_KEY: summary.model_dump_json().encode()})
    with atomic_file(path) as stream:
        pq.write_table(
            pa.Table.from_arrays(columns, schema=schema),
            stream,
            compression="zstd",
            use_dictionary=["family", "chunk_id", "seed_prompt", "outcome"],
        )
    return summary


def read_summary(path: Path) -> ShardSummary:
    """What the shard says about itself; reads the file's footer only.

    Raises:
        DatasetError: The file is missing or not a shard.
    """
    try:
        metadata = pq.read_schema(path).metadata or {}
        return ShardSummary.model_validate_json(metadata[_SUMMARY_KEY])
    except (OSError, pa.ArrowException, KeyError, ValidationError) as error:
        raise DatasetError(
            f"{path} is not a shard: {error}.", "Run the study again; it makes what is missing."
        ) from error


@dataclass(frozen=True, eq=False)
class ShardColumns:
    """The kept conversations of a shard (or of several), as flat arrays.

    Attributes:
        texts: The scalar columns, an arrow array each, `[n]`.
        token_ids: `[t]` int32, all conversations behind each other; `token_counts` `[n]` tells them apart.
        assistant_mask: `[t]` bool.
        topk_ids: `[m, k]` int32; `target_counts` `[n]` tells the conversations apart.
        topk_logprobs: `[m, k]` float32.
        tail_logprob: `[m]` float32.
    """

    texts: pa.Table
    token_ids: npt.NDArray[np.int32]
    assistant_mask: npt.NDArray[np.bool_]
    token_counts: npt.NDArray[np.int64]
    topk_ids: npt.NDArray[np.int32]
    topk_logprobs: npt.NDArray[np.float32]
    tail_logprob: npt.NDArray[np.float32]
    target_counts: npt.NDArray[np.int64]


def read_kept(path: Path) -> ShardColumns:
    """The kept conversations of a shard.

    Raises:
        DatasetError: The file cannot be read, or its columns do not fit each other.
    """
    try:
        table = pq.read_table(path, schema=SCHEMA, filters=[("outcome", "=", "kept")]).combine_chunks()
    except (OSError, pa.ArrowException) as error:
        raise DatasetError(f"{path} cannot be read: {error}.", "Make the dataset again.") from error
    flat = {name: table[name].combine_chunks().flatten().to_numpy(zero_copy_only=False) for name in _LISTS}
    token_counts, target_counts = (
        table[name].combine_chunks().value_lengths().to_numpy().astype(np.int64)
        for name in ("token_ids", "tail_logprob")
    )
    targets = len(flat["tail_logprob"])
    k = len(flat["topk_ids"]) // targets if targets else 0
    fits = (
        len(flat["topk_ids"]) == len(flat["topk_logprobs"]) == targets * k
        and len(flat["assistant_mask"]) == len(flat["token_ids"])
        and int(flat["assistant_mask"].sum()) == targets
    )
    if not fits:
        raise DatasetError(f"The columns of {path} do not fit each other.", "Make the dataset again.")
    return ShardColumns(
        texts=table.select(list(_SCALARS)),
        token_ids=flat["token_ids"],
        assistant_mask=flat["assistant_mask"],
        token_counts=token_counts,
        topk_ids=flat["topk_ids"].reshape(targets, k),
        topk_logprobs=flat["topk_logprobs"].reshape(targets, k),
        tail_logprob=flat["tail_logprob"],
        target_counts=target_counts,
    )


def _list_column(
    targets: Sequence[Targets | None], kind: pa.DataType, values: Callable[[Targets], npt.NDArray[Any]]
) -> pa.ListArray:
    """One arrow list per sample out of one flat array: no Python object for a single element."""
    arrays = [values(target).reshape(-1) for target in targets if target is not None]
    lengths = [0 if target is None else values(target).size for target in targets]
    flat = np.concatenate(arrays) if arrays else np.empty(0)
    offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat, kind))


def _summarise(samples: Sequence[Sample], plan_digest: str) -> ShardSummary:
    counts: dict[str, dict[str, int]] = {}
    for sample in samples:
        of_family = counts.setdefault(sample.family, {})
        of_family[sample.outcome] = of_family.get(sample.outcome, 0) + 1
    targets = [sample.targets for sample in samples if sample.targets is not None]
    return ShardSummary(
        plan_digest=plan_digest,
        first_sample=samples[0].sample_index,
        num_samples=len(samples),
        counts=counts,
        num_tokens=sum(len(target.token_ids) for target in targets),
        num_target_tokens=sum(len(target.tail_logprob) for target in targets),
        tail_mass=sum(float(np.exp(target.tail_logprob, dtype=np.float64).sum()) for target in targets),
    )
