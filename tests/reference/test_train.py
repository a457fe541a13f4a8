"""The reference model's training, in a form of seconds."""

from dataclasses import replace
from pathlib import Path

from cartridge_core.reference.train import ReferenceTrainingConfig, train

SHIPPED = ReferenceTrainingConfig()
BRIEF = replace(
    SHIPPED,
    tokens_per_batch=300,
    phases=tuple(replace(phase, steps=2, first_level=0, warmup_steps=1) for phase in SHIPPED.phases[:2]),
)


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_the_same_seed_gives_the_same_weights_also_when_taken_up_between_phases(tmp_path: Path) -> None:
    train(tmp_path / "once", BRIEF)
    train(tmp_path / "again", BRIEF)
    assert weights(tmp_path / "once") == weights(tmp_path / "again")

    train(tmp_path / "parts", replace(BRIEF, phases=BRIEF.phases[:1]))
    assert weights(tmp_path / "parts") != weights(tmp_path / "once")
    train(tmp_path / "parts", BRIEF, first_phase=1)
    assert weights(tmp_path / "parts") == weights(tmp_path / "once")


def test_another_seed_gives_other_weights(tmp_path: Path) -> None:
    for seed in (1, 2):
        train(tmp_path / str(seed), replace(BRIEF, seed=seed, phases=BRIEF.phases[:1]))
    assert weights(tmp_path / "1") != weights(tmp_path / "2")
