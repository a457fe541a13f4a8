"""The evaluation report: its own record beside the Cartridge, with everything a promotion decision needs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from cartridge_core import __version__
from cartridge_core.atomic_file import atomic_file
from cartridge_core.baselines import ICL, ICL_TRUNCATED, LORA, NEXT_TOKEN, SELF_STUDY
from cartridge_core.benchmarks import Benchmark, Question, questions_digest
from cartridge_core.digest import digest_of
from cartridge_core.errors import EvaluationError
from cartridge_core.evaluation import ArmResult, EvaluationConfig
from cartridge_core.manifest import BaseModelIdentity
from cartridge_core.report.comparison import Comparison, compare_arms
from cartridge_core.report.rows import load_rows, rows_digest, save_rows

if TYPE_CHECKING:
    from rich.table import Table

    from cartridge_core.corpus import Corpus

REPORT_FILE = "report.json"
ROWS_FILE = "rows.parquet"
_REMEDY = "Grade the Cartridge again."


class EvaluationReport(BaseModel):
    """How a Cartridge did against its baselines on one set of questions.

    Make one with `build`, keep it with `save`, read it with `load`. The digest covers every field, and through
    `rows_digest` every reply.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: int = 1
    """Version of this layout."""
    corpus_name: str
    """What the corpus is called."""
    corpus_digest: str
    """The corpus version asked about."""
    cartridge_digest: str
    """The Cartridge that was graded: the self-study arm's, or the first trained arm's where there is no such arm."""
    cartridge_arm: str
    """Name of the arm that the Cartridge stands in."""
    questions_digest: str
    """The questions; reports with the same one may be compared."""
    base_model: BaseModelIdentity
    """The model that answered."""
    benchmark: str
    """Name of the benchmark that judged."""
    metric: str
    """What a score is called."""
    config: EvaluationConfig
    """How the questions were put."""
    arms: tuple[ArmResult, ...]
    """One result an arm."""
    comparisons: tuple[Comparison, ...]
    """The Cartridge against every other arm that fits."""
    rows_digest: str
    """Digest of the rows beside the report."""
    seconds: float
    """Wall time of the grading."""
    software_version: str = __version__
    """Version of Cartridge Foundry that graded."""

    @classmethod
    def build(
        cls,
        *,
        corpus: Corpus,
        questions: Sequence[Question],
        base_model: BaseModelIdentity,
        benchmark: Benchmark,
        results: Sequence[ArmResult],
        seconds: float,
        config: EvaluationConfig | None = None,
    ) -> Self:
        """Put results together and compare the Cartridge with every other arm.

        Raises:
            EvaluationError: No arm is a Cartridge, two share a name, or one answered other questions.
        """
        config = config or EvaluationConfig()
        trained = {result.name: result for result in results if result.cartridge_digest is not None}
        if not trained:
            raise EvaluationError("No arm of the report is a Cartridge.", "Grade at least one.")
        if len({result.name for result in results}) < len(results):
            raise EvaluationError("Two arms of the report share a name.", "Give every arm its own.")
        ids = [question.id for question in questions]
        for result in results:
            if result.fits and [row.question_id for row in result.rows] != ids:
                raise EvaluationError(f"Arm '{result.name}' did not answer the report's questions.", _REMEDY)
        own = trained.get(SELF_STUDY) or next(iter(trained.values()))
        return cls(
            corpus_name=corpus.name,
            corpus_digest=corpus.digest,
            cartridge_digest=own.cartridge_digest or "",
            cartridge_arm=own.name,
            questions_digest=questions_digest(questions),
            base_model=base_model,
            benchmark=benchmark.name,
            metric=benchmark.metric,
            config=config,
            arms=tuple(results),
            comparisons=_comparisons(own, results, config),
            rows_digest=rows_digest([row for result in results for row in result.rows]),
            seconds=round(seconds, 3),
        )

    def about(self, name: str) -> Self:
        """The same grading as a report on another of its Cartridges, such as the quantised one.

        Raises:
            EvaluationError: There is no such arm, it is no Cartridge, or the report was loaded without its rows.
        """
        own = self.arm(name)
        if own.cartridge_digest is None:
            raise EvaluationError(f"Arm '{name}' is no Cartridge.", "Name a trained arm.")
        if any(arm.n and arm.fits and not arm.rows for arm in self.arms):
            raise EvaluationError("The report's rows are not at hand.", "Load it with its rows.")
        update = {
            "cartridge_digest": own.cartridge_digest,
            "cartridge_arm": name,
            "comparisons": _comparisons(own, self.arms, self.config),
        }
        return self.model_copy(update=update)

    @property
    def digest(self) -> str:
        """sha256 of the canonical report: its identity."""
        return digest_of(self.model_dump(mode="json"))

    @property
    def cartridge(self) -> ArmResult:
        """The result of the Cartridge that the report is about."""
        return self.arm(self.cartridge_arm)

    def find(self, name: str) -> ArmResult | None:
        """The result of an arm, or None if it was not graded."""
        return next((arm for arm in self.arms if arm.name == name), None)

    def arm(self, name: str) -> ArmResult:
        """The result of an arm.

        Raises:
            EvaluationError: It was not graded; the message names those that were.
        """
        found = self.find(name)
        if found is None:
            known = ", ".join(arm.name for arm in self.arms)
            raise EvaluationError(f"The report has no arm '{name}'; it has {known}.", "Grade that arm too.")
        return found

    def comparison(self, against: str) -> Comparison | None:
        """The Cartridge against another arm, or None if that was not graded or does not fit."""
        return next((comparison for comparison in self.comparisons if comparison.against == against), None)

    def figures(self) -> dict[str, float]:
        """The numbers under the names that proofs use: `icl_accuracy`, `memory_ratio`, `self_study_over_icl`."""
        own = self.cartridge
        figures: dict[str, float] = {"n_questions": own.n, "cartridge_tokens": own.num_tokens}
        figures |= {f"{a.name}_{self.metric.lower()}": a.score for a in self.arms if a.score is not None}
        if (icl := self.find(ICL)) and own.kv_bytes:
            figures |= {"icl_tokens": icl.num_tokens, "memory_ratio": icl.kv_bytes / own.kv_bytes}
        if (to_icl := self.comparison(ICL)) and to_icl.ratio is not None:
            figures[f"{own.name}_over_{ICL}"] = to_icl.ratio
        for other in (NEXT_TOKEN, ICL_TRUNCATED, LORA):
            if comparison := self.comparison(other):
                figures[f"{own.name}_minus_{other}"] = comparison.difference
        return figures

    def to_json(self) -> str:
        """The report as readable JSON, its digest first."""
        content = {"digest": self.digest, **self.model_dump(mode="json")}
        return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Read a report without its rows.

        Raises:
            EvaluationError: It is no report, or its digest is not that of its content.
        """
        try:
            content = json.loads(text)
            stated = content.pop("digest", None) if isinstance(content, dict) else None
            report = cls.model_validate(content)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            field = ".".join(str(part) for part in first["loc"])
            raise EvaluationError(f"Not an evaluation report: field '{field}': {first['msg']}.", _REMEDY) from error
        except ValueError as error:
            raise EvaluationError(f"Not an evaluation report: {error}.", _REMEDY) from error
        if stated != report.digest:
            raise EvaluationError(
                f"The evaluation report was changed: its digest is {report.digest[:12]}, it states {str(stated)[:12]}.",
                _REMEDY,
            )
        return report

    def save(self, folder: str | Path) -> Path:
        """Write `rows.parquet`, then `report.json`, each atomically; returns the path of the report."""
        folder = Path(folder)
        rows = [row for arm in self.arms for row in arm.rows]
        if rows_digest(rows) != self.rows_digest:
            raise EvaluationError("The report's rows are not at hand, so it cannot be saved.", "Load it with its rows.")
        save_rows(folder / ROWS_FILE, rows)
        path = folder / REPORT_FILE
        with atomic_file(path) as stream:
            stream.write(self.to_json().encode())
        return path

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a report from its folder with its rows, or from a JSON file alone without them.

        Raises:
            EvaluationError: Something is missing, or does not match its digest.
        """
        path = Path(path)
        file = path / REPORT_FILE if path.is_dir() else path
        try:
            report = cls.from_json(file.read_bytes())
        except OSError as error:
            raise EvaluationError(f"The report {file} cannot be read: {error.strerror}.", _REMEDY) from error
        if not path.is_dir():
            return report
        rows = load_rows(path / ROWS_FILE)
        if rows_digest(rows) != report.rows_digest:
            raise EvaluationError(f"The rows {path / ROWS_FILE} do not belong to the report beside them.", _REMEDY)
        by_arm = {name: tuple(group) for name, group in groupby(rows, key=lambda row: row.arm)}
        arms = tuple(arm.model_copy(update={"rows": by_arm.get(arm.name, ())}) for arm in report.arms)
        return report.model_copy(update={"arms": arms})

    def table(self) -> Table:
        """The arms as a rich table."""
        from cartridge_core.report.tables import rich_table

        return rich_table(self)

    def markdown(self) -> str:
        """The Cartridge against its baselines as a Markdown sentence and table."""
        from cartridge_core.report.tables import markdown

        return markdown(self)

    def plot(self, path: str | Path) -> Path:
        """Draw score against KV bytes into a PNG (needs matplotlib); returns its path."""
        from cartridge_core.report.plot import plot_report

        return plot_report(self, Path(path))


def _comparisons(own: ArmResult, arms: Sequence[ArmResult], config: EvaluationConfig) -> tuple[Comparison, ...]:
    others = (arm for arm in arms if arm is not own)
    compared = (compare_arms(own, other, config.bootstrap_samples, config.seed) for other in others)
    return tuple(comparison for comparison in compared if comparison is not None)
