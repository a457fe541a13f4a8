"""FlexAttention's layout gives what the dense one gives. Here it runs uncompiled; tests/gpu has the compiled kernels.

On a CPU torch offers no gradient of FlexAttention. Its reference implementation has one all the same, behind a check
that these tests go around: it shows the mask and the cap to be right in the backward pass, not the CUDA kernel.
"""

import pytest
import torch.nn.attention.flex_attention as torch_flex

from cartridge_core.attention import choose_kernel
from cartridge_core.errors import TrainingError
from cartridge_core.models import BaseModel
from tests.training.test_packed_attention import build
from tests.unpacked import check_equal

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


def test_forward_equals_unpacked(each_base: BaseModel) -> None:
    check_equal(each_base, kernel="flex", gradients=False)


@pytest.mark.parametrize("kind", ["gemma2", "gemma3n", "phi3"])
def test_forward_equals_unpacked_in_other_families(kind: str) -> None:
    check_equal(build(kind), kernel="flex", gradients=False)


@pytest.mark.parametrize("kind", ["gemma2", "gemma3n"])
def test_the_reference_backward_equals_unpacked(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_flex, "_validate_device", lambda query, key, value: None)
    check_equal(build(kind), kernel="flex")


def test_the_kernel_is_chosen_by_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_kernel("auto", "cpu") == choose_kernel("dense", "cpu") == choose_kernel("dense", "cuda") == "dense"
    with pytest.raises(TrainingError, match=r"no gradient on a cpu device.*'auto' or 'dense'"):
        choose_kernel("flex", "cpu")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    assert choose_kernel("auto", "cuda:0") == choose_kernel("flex", "cuda") == "flex"


def test_a_fallback_on_a_gpu_is_loud(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.warns(RuntimeWarning, match="Triton is not installed.*several times slower"):
        assert choose_kernel("auto", "cuda") == "dense"
    with pytest.raises(TrainingError, match="Triton is not installed"):
        choose_kernel("flex", "cuda")
