"""A curve over steps, in characters."""

from bisect import bisect_right
from collections.abc import Sequence

from rich.text import Text

BRAILLE = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # Unicode's bit of each dot


def labelled_curve(points: Sequence[tuple[int, float]], width: int, height: int) -> list[Text]:
    """The loss over the steps, the last of ``height`` lines its axis; nothing for one point."""
    if len(points) < 2:
        return []
    losses = [loss for _, loss in points]
    top, bottom = f"{max(losses):.2f}", f"{min(losses):.2f}"
    margin = max(len(top), len(bottom))
    rows = curve(points, width - margin - 2, height - 1)
    labels = [top, *[""] * (len(rows) - 2), bottom]
    lines = [
        Text.assemble((f"{label:>{margin}} │", "dim"), (row, "green"))
        for label, row in zip(labels, rows, strict=True)
    ]
    first, last = f"{points[0][0]:,}", f"{points[-1][0]:,}"
    axis = "loss".center(width - margin - 2)
    axis = f"{first}{axis[len(first) : len(axis) - len(last)]}{last}"
    return [*lines, Text(" " * (margin + 2) + axis, style="dim")]


def curve(points: Sequence[tuple[int, float]], width: int, height: int) -> list[str]:
    """A line through ``(x, y)`` points in braille, two by four dots a character.

    Args:
        points: at least two, by rising x.
        width, height: in characters.
    """
    xs, ys = [x for x, _ in points], [y for _, y in points]
    low, span = min(ys), (max(ys) - min(ys)) or 1.0
    columns, rows = 2 * width, 4 * height
    cells = [[0] * width for _ in range(height)]
    previous = None
    for column in range(columns):
        x = xs[0] + (xs[-1] - xs[0]) * column / (columns - 1)
        right = min(bisect_right(xs, x), len(xs) - 1)
        share = (x - xs[right - 1]) / (xs[right] - xs[right - 1])
        y = ys[right - 1] + share * (ys[right] - ys[right - 1])
        row = round((1 - (y - low) / span) * (rows - 1))
        start = row if previous is None else previous
        for dot in range(min(start, row), max(start, row) + 1):
            cells[dot // 4][column // 2] |= BRAILLE[dot % 4][column % 2]
        previous = row
    return ["".join(chr(0x2800 + cell) if cell else " " for cell in line) for line in cells]
