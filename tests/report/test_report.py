import io
import json
import random
from pathlib import Path

import pytest
from PIL import Image
from pydantic import ValidationError
from rich.console import Console

from cartridge_core.benchmarks import BENCHMARKS, Question, questions_digest
from cartridge_core.corpus import Corpus, Document
from cartridge_core.errors import EvaluationError
from cartridge_core.evaluation import ArmResult, QuestionRow
from cartridge_core.manifest import BaseModelIdentity
from cartridge_core.report import EvaluationReport
from cartridge_core.report.label_placement import Anchor, Box, needs_leader, place_labels
from cartridge_core.report.tables import human_bytes

N = 240
BYTES_PER_TOKEN = 1024
IDENTITY = BaseModelIdentity(id="reference", revision="0123", config_digest="c", tokenizer_digest="t")
CORPUS = Corpus("clinic", (Document("memory:clinic", "Clinic", "text/plain", "text", {}),))
QUESTIONS = [Question(id=f"q{i}", question=f"Question {i}?", answer="a") for i in range(N)]


def result(name: str, right: int, tokens: int, digest: str | None = None, fits: bool = True) -> ArmResult:
    """An arm in which `right` of the N questions, drawn by its name, were answered."""
    hits = set(random.Random(name).sample(range(N), right))
    rows = tuple(
        QuestionRow(
            arm=name,
            question_id=question.id,
            question=question.question,
            answer=question.answer,
            reply="a" if i in hits else "no idea | b",
            score=float(i in hits),
            parsed=i in hits,
            finished=True,
            num_reply_tokens=2,
        )
        for i, question in enumerate(QUESTIONS)
    )
    benchmark = BENCHMARKS["closed_answer"]
    return ArmResult(
        name=name,
        metric=benchmark.metric,
        fits=fits,
        score=right / N if fits else None,
        interval=benchmark.interval([row.score for row in rows], 1000, 0) if fits else None,
        n=N,
        unparsed=N - right if fits else 0,
        errors=0,
        unfinished=0,
        num_tokens=tokens,
        kv_bytes=tokens * BYTES_PER_TOKEN,
        cartridge_digest=digest,
        seconds=1.0,
        rows=rows if fits else (),
    )


def report_of(*results: ArmResult) -> EvaluationReport:
    return EvaluationReport.build(
        corpus=CORPUS,
        questions=QUESTIONS,
        base_model=IDENTITY,
        benchmark=BENCHMARKS["closed_answer"],
        results=results,
        seconds=12.5,
    )


@pytest.fixture(scope="module")
def report() -> EvaluationReport:
    return report_of(
        result("no_context", 12, 1),
        result("icl", 225, 3710),
        result("icl_truncated", 19, 48),
        result("next_token", 96, 48, digest="next"),
        result("self_study", 222, 48, digest="self"),
    )


def test_the_report_says_what_was_graded(report: EvaluationReport) -> None:
    assert (report.corpus_digest, report.cartridge_digest) == (CORPUS.digest, "self")
    assert report.questions_digest == questions_digest(QUESTIONS)
    assert report.cartridge.name == "self_study"
    assert report.arm("icl").n == N
    assert report.find("oracle") is None
    with pytest.raises(EvaluationError, match=r"no arm 'oracle'; it has no_context, icl"):
        report.arm("oracle")


def test_figures_carry_the_names_of_the_proofs(report: EvaluationReport) -> None:
    figures = report.figures()
    assert figures["icl_accuracy"] == 225 / 240
    assert figures["memory_ratio"] == pytest.approx(3710 / 48)
    assert figures["self_study_over_icl"] == pytest.approx(222 / 225)
    assert figures["self_study_minus_next_token"] == pytest.approx(126 / 240)
    assert figures["self_study_minus_icl_truncated"] == pytest.approx(203 / 240)
    assert (figures["n_questions"], figures["cartridge_tokens"], figures["icl_tokens"]) == (240, 48, 3710)


def test_comparisons_are_paired_and_hold_their_own_estimate(report: EvaluationReport) -> None:
    assert {comparison.against for comparison in report.comparisons} == {
        "no_context",
        "icl",
        "icl_truncated",
        "next_token",
    }
    to_icl = report.comparison("icl")
    assert to_icl is not None and to_icl.ratio is not None and to_icl.ratio_interval is not None
    assert to_icl.ratio_interval.low < to_icl.ratio < to_icl.ratio_interval.high
    assert to_icl.difference_interval.low < to_icl.difference < to_icl.difference_interval.high
    assert to_icl.intervals_overlap
    assert to_icl.memory_ratio == pytest.approx(3710 / 48)
    to_truncated = report.comparison("icl_truncated")
    assert to_truncated is not None and not to_truncated.intervals_overlap
    assert to_truncated.difference_interval.low > 0.7


def test_json_round_trip_and_digest(report: EvaluationReport) -> None:
    again = EvaluationReport.from_json(report.to_json())
    assert again.digest == report.digest == json.loads(report.to_json())["digest"]
    assert again.figures() == report.figures()
    assert "no idea" not in report.to_json()


@pytest.mark.parametrize("field", ["score", "kv_bytes", "unparsed"])
def test_a_changed_report_is_refused(report: EvaluationReport, field: str) -> None:
    content = json.loads(report.to_json())
    content["arms"][4][field] = 1
    with pytest.raises(EvaluationError, match="was changed"):
        EvaluationReport.from_json(json.dumps(content))


@pytest.mark.parametrize(("text", "message"), [("{", "Not an"), ("[]", "Not an"), ('{"digest": "x"}', "corpus_name")])
def test_what_is_no_report_is_refused(text: str, message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        EvaluationReport.from_json(text)


def test_a_saved_report_comes_back_with_its_rows(report: EvaluationReport, tmp_path: Path) -> None:
    path = report.save(tmp_path / "graded")
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["report.json", "rows.parquet"]
    again = EvaluationReport.load(path.parent)
    assert again == report
    assert again.arm("self_study").rows == report.arm("self_study").rows
    alone = EvaluationReport.load(path)
    assert alone.digest == report.digest
    assert alone.arm("self_study").rows == ()
    with pytest.raises(EvaluationError, match="rows are not at hand"):
        alone.save(tmp_path / "other")


def test_rows_of_another_report_are_refused(report: EvaluationReport, tmp_path: Path) -> None:
    report.save(tmp_path / "a")
    other = report_of(result("icl", 200, 3710), result("self_study", 222, 48, digest="self"))
    other.save(tmp_path / "b")
    (tmp_path / "b" / "rows.parquet").replace(tmp_path / "a" / "rows.parquet")
    with pytest.raises(EvaluationError, match="do not belong"):
        EvaluationReport.load(tmp_path / "a")


def test_missing_and_broken_files_are_named(report: EvaluationReport, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"report\.json cannot be read"):
        EvaluationReport.load(tmp_path)
    report.save(tmp_path)
    (tmp_path / "rows.parquet").write_bytes(b"half a fi")
    with pytest.raises(EvaluationError, match=r"rows\.parquet cannot be read"):
        EvaluationReport.load(tmp_path)


def test_an_arm_that_does_not_fit_has_no_score_and_no_comparison(tmp_path: Path) -> None:
    report = report_of(result("icl", 0, 8210, fits=False), result("self_study", 210, 400, digest="self"))
    assert report.comparison("icl") is None
    assert "icl_accuracy" not in report.figures()
    assert report.figures()["memory_ratio"] == pytest.approx(8210 / 400)
    assert "does not fit" in report.markdown()
    report.save(tmp_path)
    assert EvaluationReport.load(tmp_path) == report
    report.plot(tmp_path / "plot.png")


def test_what_cannot_be_reported_is_refused(report: EvaluationReport) -> None:
    with pytest.raises(EvaluationError, match="No arm of the report is a Cartridge"):
        report_of(result("icl", 200, 3710))
    twice = result("self_study", 222, 48, digest="self")
    with pytest.raises(EvaluationError, match="share a name"):
        report_of(twice, twice)
    fewer = report.arm("icl").model_copy(update={"rows": report.arm("icl").rows[1:]})
    with pytest.raises(EvaluationError, match="Arm 'icl' did not answer"):
        report_of(fewer, twice)
    with pytest.raises(ValidationError):
        EvaluationReport.model_validate({**report.model_dump(), "surprise": 1})


def test_the_table_shows_every_arm_in_eighty_columns(report: EvaluationReport) -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(report.table())
    lines = console.export_text().splitlines()
    assert "240 questions" in lines[0] and not any("…" in line for line in lines)
    own = next(line for line in lines if "Cartridge, self-study" in line)
    assert own.replace("Cartridge, self-study", "").split() == [
        "92.5%",
        "88.5–95.2%",
        "18",
        "48",
        "48",
        "KiB",
        "77.3×",
    ]
    assert sum("%" in line for line in lines) - 1 == len(report.arms)  # the heading has a percent sign too


def test_the_markdown_sets_the_cartridge_against_icl(report: EvaluationReport) -> None:
    lines = report.markdown().splitlines()
    assert lines[0].startswith("The Cartridge keeps 98.7% (95% interval ")
    assert "of ICL's accuracy with 48 tokens (48 KiB) where ICL needs 3,710 (3.62 MiB)." in lines[0]
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 2 + 5
    assert len({line.count("|") for line in table}) == 1
    assert report.digest[:12] in lines[-1]


def test_the_plot_is_a_png_and_the_same_each_time(report: EvaluationReport, tmp_path: Path) -> None:
    first = report.plot(tmp_path / "deep" / "a.png")
    with Image.open(first) as image:
        assert image.format == "PNG"
        assert image.width >= 1600
        assert len(image.convert("RGB").getcolors(1 << 20) or []) > 50
    assert first.read_bytes() == report.plot(tmp_path / "b.png").read_bytes()


def test_the_plot_takes_empty_crowded_and_single_arms(tmp_path: Path) -> None:
    report_of(result("self_study", 0, 48, digest="self")).plot(tmp_path / "single.png")
    crowd = [result(f"arm-{i}", 100 + i, 48, digest=str(i)) for i in range(8)]
    report_of(result("no_context", 0, 0), result("icl", N, 48), *crowd).plot(tmp_path / "crowd.png")
    assert {path.name for path in tmp_path.iterdir()} == {"single.png", "crowd.png"}


@pytest.mark.parametrize("seed", range(6))
def test_labels_cover_nothing_and_stay_inside(seed: int) -> None:
    rng = random.Random(seed)
    frame = Box(0, 0, 1600, 720)
    anchors = []
    for _ in range(6):
        x, y = rng.uniform(250, 1350), rng.uniform(80, 640)
        anchors.append(Anchor(x, y, 300, 60, (Box(x - 18, y - 50, x + 18, y + 50),)))
    boxes = place_labels(anchors, frame)
    marks = [mark for anchor in anchors for mark in anchor.marks]
    for i, box in enumerate(boxes):
        assert box.overlap(frame) == pytest.approx(box.area)
        assert all(box.overlap(other) == 0 for j, other in enumerate(boxes) if j != i)
        assert all(box.overlap(mark) == 0 for mark in marks)


def test_a_free_label_stands_beside_its_point() -> None:
    anchor = Anchor(400, 300, 100, 40, (Box(390, 290, 410, 310),))
    (box,) = place_labels([anchor], Box(0, 0, 800, 600), gap=12)
    assert box == Box(412, 280, 512, 320)
    assert not needs_leader(anchor, box, 8)
    assert needs_leader(anchor, Box(600, 280, 700, 320), 8)


def test_a_segment_meets_a_box_or_passes_it() -> None:
    box = Box(10, 10, 20, 20)
    assert box.meets(0, 15, 30, 15)
    assert box.meets(0, 0, 30, 30)
    assert not box.meets(0, 0, 30, 5)
    assert not box.meets(0, 15, 9, 15)
    assert not box.meets(0, 25, 30, 25)


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (49152, "48 KiB"), (3799040, "3.62 MiB"), (2**40, "1 TiB")],
)
def test_human_bytes(count: int, text: str) -> None:
    assert human_bytes(count) == text


@pytest.fixture(scope="module")
def quantized(report: EvaluationReport) -> EvaluationReport:
    int8 = result("int8", 220, 48, digest="self-int8").model_copy(update={"stored_bytes": 26_000})
    return report_of(*report.arms, int8)


def test_a_quantised_arm_says_what_it_takes_on_disk(quantized: EvaluationReport, report: EvaluationReport) -> None:
    assert quantized.cartridge_arm == "self_study"
    assert "On disk: int8 25.4 KiB. Once loaded they take what the memory column says" in quantized.markdown()
    stream = io.StringIO()
    Console(file=stream, width=80).print(quantized.table())
    assert "On disk: int8 25.4 KiB" in stream.getvalue()
    comparison = quantized.comparison("int8")
    assert comparison is not None
    # Memory is compared in the base model's type on both sides.
    assert (comparison.difference, comparison.memory_ratio) == (pytest.approx(2 / N), 1.0)
    assert "On disk" not in report.markdown()
    assert "stored_bytes" not in report.to_json()
    assert EvaluationReport.from_json(quantized.to_json()).arm("int8").stored_bytes == 26_000


def test_a_report_can_be_about_another_of_its_cartridges(quantized: EvaluationReport, tmp_path: Path) -> None:
    about = quantized.about("int8")
    assert (about.cartridge_digest, about.cartridge_arm, about.cartridge.score) == ("self-int8", "int8", 220 / N)
    assert {c.arm for c in about.comparisons} == {"int8"}
    assert {c.against for c in about.comparisons} == {arm.name for arm in quantized.arms} - {"int8"}
    assert about.arms == quantized.arms
    about.save(tmp_path)
    assert EvaluationReport.load(tmp_path).digest == about.digest != quantized.digest
    with pytest.raises(EvaluationError, match="Arm 'icl' is no Cartridge"):
        quantized.about("icl")
    with pytest.raises(EvaluationError, match="no arm 'fp8'"):
        quantized.about("fp8")
    with pytest.raises(EvaluationError, match="rows are not at hand"):
        EvaluationReport.from_json(quantized.to_json()).about("int8")


def test_an_adapter_is_counted_as_memory_beside_its_keys_and_values(report: EvaluationReport, tmp_path: Path) -> None:
    lora = result("lora", 200, 1).model_copy(update={"adapter_bytes": 47 * 1024})
    beside = report_of(*report.arms, lora)
    assert (beside.cartridge_arm, lora.memory_bytes, lora.kv_bytes) == ("self_study", 48 * 1024, 1024)
    comparison = beside.comparison("lora")
    assert comparison is not None
    assert (comparison.difference, comparison.memory_ratio) == (pytest.approx(22 / N), 1.0)
    assert beside.figures()["self_study_minus_lora"] == comparison.difference
    note = "Weights beside the model, counted in the memory column: LoRA adapter 47 KiB."
    row = next(line for line in beside.markdown().splitlines() if line.startswith("| LoRA adapter"))
    assert row.split(" | ")[-2:] == ["48 KiB", "77.3× |"]
    assert note in beside.markdown()
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(beside.table())
    assert note in " ".join(console.export_text().split())
    assert beside.plot(tmp_path / "a.png").read_bytes() != report.plot(tmp_path / "b.png").read_bytes()
    assert "adapter" not in report.markdown() + report.to_json()
    assert EvaluationReport.from_json(beside.to_json()).arm("lora").adapter_bytes == 47 * 1024
