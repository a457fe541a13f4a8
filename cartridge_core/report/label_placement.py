"""Where the labels of a plot go, so that none covers another, a point or a whisker. Plain geometry in pixels."""

import itertools
import math
import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

_EIGHTHS = (0, 8, 4, 12, 1, 15, 7, 9, 2, 14, 6, 10)
"""Directions a label may stand in, best first, in eighths of pi: right, left, above, below, then between them."""
_DISTANCES = (0.0, 14.0, 32.0, 56.0, 90.0, 130.0, 180.0, 240.0)
"""How far a label may be pushed away from where it would touch its point."""
_PLACINGS = 240
"""Labels placed over all orders that are tried; the first label of an order has the widest choice."""
_COVERED = 10.0
"""Dislike of one covered pixel: more than that of any detour."""
_CROSSED = 2000.0
"""Dislike of a leader line that crosses something."""


class Box(NamedTuple):
    """An upright rectangle in pixels."""

    left: float
    bottom: float
    right: float
    top: float

    def overlap(self, other: "Box") -> float:
        """Area that both cover."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.top, other.top) - max(self.bottom, other.bottom)
        return max(0.0, width) * max(0.0, height)

    @property
    def area(self) -> float:
        """Width times height."""
        return (self.right - self.left) * (self.top - self.bottom)

    def grown(self, by: float) -> "Box":
        """The box with a margin on every side."""
        return Box(self.left - by, self.bottom - by, self.right + by, self.top + by)

    def nearest(self, x: float, y: float) -> tuple[float, float]:
        """The box's point that lies nearest to (x, y)."""
        return min(max(x, self.left), self.right), min(max(y, self.bottom), self.top)

    def meets(self, x: float, y: float, to_x: float, to_y: float) -> bool:
        """Whether the segment from (x, y) to (to_x, to_y) runs through the box (Liang and Barsky, 1984)."""
        enter, leave = 0.0, 1.0
        for start, step, low, high in ((x, to_x - x, self.left, self.right), (y, to_y - y, self.bottom, self.top)):
            if step == 0:
                if not low <= start <= high:
                    return False
                continue
            near, far = sorted(((low - start) / step, (high - start) / step))
            enter, leave = max(enter, near), min(leave, far)
        return enter <= leave

    def distance(self, other: "Box") -> float:
        """Gap between two boxes; 0 where they touch."""
        across = max(self.left - other.right, other.left - self.right, 0.0)
        upright = max(self.bottom - other.top, other.bottom - self.top, 0.0)
        return math.hypot(across, upright)


class Anchor(NamedTuple):
    """A point that needs a label of a given size."""

    x: float
    y: float
    width: float
    height: float
    marks: tuple[Box, ...]
    """What is drawn for the point: marker and whisker, which no label may cover."""


def place_labels(anchors: Sequence[Anchor], frame: Box, gap: float = 9.0, margin: float = 3.0) -> list[Box]:
    """Boxes for the labels, in the order of the anchors.

    Args:
        anchors: Points with their marks and the size of their labels.
        frame: What labels must stay in.
        gap: Pixels between a point and its label.
        margin: Pixels that a label keeps from other labels and other points' marks.
    """
    candidates = [sorted(_candidates(anchor, gap)) for anchor in anchors]
    best: list[Box] = []
    best_cost = math.inf
    for order in _orders(len(anchors)):
        placed: dict[int, Box] = {}
        total = 0.0
        for index in order:
            others = [mark for i, anchor in enumerate(anchors) if i != index for mark in anchor.marks]
            others = [box.grown(margin) for box in (*others, *placed.values())]
            cost, placed[index] = _best(anchors[index], candidates[index], others, frame)
            total += cost
            if total >= best_cost:
                break
        if total < best_cost:
            best_cost, best = total, [placed[index] for index in range(len(anchors))]
    return best


def needs_leader(anchor: Anchor, box: Box, reach: float) -> bool:
    """Whether a label is too far from its point's marks to be read as theirs."""
    return all(mark.distance(box) > reach for mark in anchor.marks)


def _best(
    anchor: Anchor, candidates: Sequence[tuple[float, Box]], others: Sequence[Box], frame: Box
) -> tuple[float, Box]:
    """The candidate of least cost; candidates come in the order of their dislike, which is the least they can cost."""
    best_cost, best = math.inf, candidates[0][1]
    for dislike, box in candidates:
        if dislike >= best_cost:
            break
        cost = dislike + _cost(anchor, box, others, frame)
        if cost < best_cost:
            best_cost, best = cost, box
    return best_cost, best


def _cost(anchor: Anchor, box: Box, others: Sequence[Box], frame: Box) -> float:
    covered = sum(box.overlap(other) for other in (*others, *anchor.marks)) + box.area - box.overlap(frame)
    x, y = box.nearest(anchor.x, anchor.y)
    crossed = any(other.meets(anchor.x, anchor.y, x, y) for other in others)
    return _COVERED * covered + (_CROSSED if crossed else 0.0)


def _orders(count: int) -> Iterator[tuple[int, ...]]:
    tried = _PLACINGS // max(count, 1)
    if math.factorial(count) <= tried:
        yield from itertools.permutations(range(count))
        return
    rng = random.Random(0)
    for _ in range(tried):
        yield tuple(rng.sample(range(count), count))


def _candidates(anchor: Anchor, gap: float) -> Iterator[tuple[float, Box]]:
    """Boxes around a point with a dislike that grows with distance and with the rank of the direction."""
    half_width, half_height = anchor.width / 2, anchor.height / 2
    for distance in _DISTANCES:
        for rank, eighth in enumerate(_EIGHTHS):
            dx, dy = math.cos(math.pi * eighth / 8), math.sin(math.pi * eighth / 8)
            # The label's centre lies where the ray leaves the rectangle that keeps the label off its point.
            scale_x = (half_width + gap) / abs(dx) if abs(dx) > 1e-9 else math.inf
            scale_y = (half_height + gap) / abs(dy) if abs(dy) > 1e-9 else math.inf
            reach = min(scale_x, scale_y) + distance
            x, y = anchor.x + dx * reach, anchor.y + dy * reach
            yield 2 * distance + rank, Box(x - half_width, y - half_height, x + half_width, y + half_height)
