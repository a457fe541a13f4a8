"""Where the time of training steps goes, by part."""

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from torch.profiler import ProfilerActivity, profile

PARTS: dict[str, tuple[str, ...]] = {
    "attention": ("_Attention", "_ToRows", "_FromRows"),
    "head and loss": ("_Chunked",),
    "optimizer": ("Optimizer.step",),
    "linear layers": ("aten::linear", "AddmmBackward0", "MmBackward0"),
    "casts": ("aten::to", "ToCopyBackward0"),
}
"""Part to the beginnings of its operators' names; what runs inside of such an operator belongs to it too."""

REST = "norms, rotation, activations, packing"
PYTHON = "outside of operators"


def profiled(work: Callable[[], Any]) -> dict[str, float]:
    """Shares of the time that some work takes, by part; they add up to one."""
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as profiler:
        begun = time.perf_counter()
        work()
        wall = time.perf_counter() - begun
    seconds = Counter(dict.fromkeys((*PARTS, REST), 0.0))
    for event in profiler.events():
        seconds[part_of(event)] += event.self_cpu_time_total / 1e6
    seconds[PYTHON] = max(wall - seconds.total(), 0.0)
    whole = seconds.total()
    return {part: amount / whole for part, amount in seconds.most_common()}


def part_of(event: Any) -> str:
    """The part of the outermost operator that has one."""
    found = REST
    while event is not None:
        found = next((part for part, names in PARTS.items() if event.name.startswith(names)), found)
        event = event.cpu_parent
    return found
