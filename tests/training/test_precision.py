import pytest
import torch

from cartridge_core.models import BaseModel
from cartridge_core.training import precision
from cartridge_core.training.config import TrainingConfig


def product_type(base: BaseModel, choice: str) -> torch.dtype:
    config = TrainingConfig.model_validate({"num_tokens": 8, "precision": choice})
    with precision.training_precision(base, config):
        return torch.mm(torch.ones(2, 2), torch.ones(2, 2)).dtype


@pytest.mark.parametrize(
    ("choice", "native", "expected"),
    [
        ("auto", True, torch.bfloat16),
        ("auto", False, torch.float32),
        ("float32", True, torch.float32),
        ("bfloat16", False, torch.bfloat16),
    ],
)
def test_auto_follows_the_processor(
    base: BaseModel, monkeypatch: pytest.MonkeyPatch, choice: str, native: bool, expected: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_bf16": native}, raising=False)
    assert product_type(base, choice) == expected


def test_an_older_torch_that_cannot_tell_is_taken_for_no(base: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert product_type(base, "auto") == torch.float32
