"""Memory that tensors lie in one behind the other."""

import torch

from cartridge_core.serving.host_memory import HostMemory

SHAPES = [(3, 1, 5), (2, 7, 1), (0, 4, 4), (1024, 8, 128)]


def test_tensors_do_not_touch_and_outlive_what_gave_them() -> None:
    memory = HostMemory(SHAPES, torch.bfloat16, pinned=False)
    tensors = [memory.take(shape).fill_(number) for number, shape in enumerate(SHAPES)]
    del memory
    for number, (tensor, shape) in enumerate(zip(tensors, SHAPES, strict=True)):
        assert tensor.shape == shape and tensor.dtype == torch.bfloat16 and tensor.is_contiguous()
        assert torch.all(tensor == number)
        assert tensor.data_ptr() % 64 == 0


def test_nothing_needs_no_room() -> None:
    assert HostMemory([], torch.float32, pinned=False).take((0, 2)).shape == (0, 2)
