"""Packing: examples of different lengths share rows of one length, so that little is computed on padding."""

from collections.abc import Sequence


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Distribute examples over rows: longest first, each into the fullest row that still has room.

    No example is cut, and none shares its tokens' view with another (that is the mask's work).

    Args:
        lengths: Tokens of each example.
        capacity: Tokens of a row, at least the longest example's.

    Returns:
        Indices of the examples in each row, in the order in which they lie.

    Raises:
        ValueError: An example is longer than a row.
    """
    if max(lengths, default=0) > capacity:
        raise ValueError(f"an example of {max(lengths)} tokens does not fit a row of {capacity}")
    rows: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        fitting = [row for row in range(len(rows)) if room[row] >= lengths[index]]
        if fitting:
            row = min(fitting, key=lambda candidate: room[candidate])
        else:
            row = len(rows)
            rows.append([])
            room.append(capacity)
        rows[row].append(index)
        room[row] -= lengths[index]
    return rows
