"""The questions behind a report, one row a question and arm, as a parquet file."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow
import pyarrow.parquet

from cartridge_core.atomic_file import atomic_file
from cartridge_core.digest import digest_of
from cartridge_core.errors import EvaluationError
from cartridge_core.evaluation import QuestionRow

_SCHEMA = pyarrow.schema(
    [
        pyarrow.field("arm", pyarrow.string(), nullable=False),
        pyarrow.field("question_id", pyarrow.string(), nullable=False),
        pyarrow.field("question", pyarrow.string(), nullable=False),
        pyarrow.field("answer", pyarrow.string(), nullable=False),
        pyarrow.field("reply", pyarrow.string(), nullable=False),
        pyarrow.field("score", pyarrow.float64(), nullable=False),
        pyarrow.field("parsed", pyarrow.bool_(), nullable=False),
        pyarrow.field("finished", pyarrow.bool_(), nullable=False),
        pyarrow.field("num_reply_tokens", pyarrow.int32(), nullable=False),
        pyarrow.field("error", pyarrow.string(), nullable=True),
    ]
)


def rows_digest(rows: Sequence[QuestionRow]) -> str:
    """Hex sha256 over the rows' content, whatever file they are kept in."""
    return digest_of([row.model_dump(mode="json") for row in rows])


def save_rows(path: Path, rows: Sequence[QuestionRow]) -> None:
    """Write the rows, all of them or (if interrupted) none."""
    table = pyarrow.Table.from_pylist([row.model_dump(mode="json") for row in rows], schema=_SCHEMA)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as stream:
        pyarrow.parquet.write_table(table, stream)


def load_rows(path: Path) -> tuple[QuestionRow, ...]:
    """Read rows back.

    Raises:
        EvaluationError: The file is missing or is not such a table.
    """
    try:
        records = pyarrow.parquet.read_table(path).to_pylist()
        return tuple(QuestionRow.model_validate(record) for record in records)
    except (OSError, pyarrow.ArrowException, ValueError) as error:
        raise EvaluationError(f"The rows {path} cannot be read: {error}", "Grade the Cartridge again.") from error
