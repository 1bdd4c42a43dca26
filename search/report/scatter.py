"""A scatter plot of characters: braille dots where the terminal has them, letters and points where it has not.

plotext draws such plots too; it takes more than a second to import, and its interface is another one with every major
version. A plot of points in a frame is little enough to draw here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich.text import Text

BRAILLE = 0x2800
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""Bit of each dot of a braille character: four rows of two."""


@dataclass(frozen=True)
class Marks:
    """Points of one kind.

    Attributes:
        points: (x, y) of each.
        mark: one character; "" for braille dots, which are four times as fine as characters.
        plain: the character where the terminal knows ASCII only.
        style: of rich; what it says is also said by the character.
        name: for the key.
    """

    points: Sequence[tuple[float, float]]
    mark: str
    plain: str
    style: str
    name: str


def scatter(
    marks: Sequence[Marks], x_name: str, y_name: str, width: int, height: int, *, ascii_only: bool = False
) -> Text:
    """A framed plot; larger is right and up.

    Args:
        marks: later ones lie over earlier ones.
        x_name: of the horizontal axis.
        y_name: of the vertical one.
        width: characters, with axis and numbers; 24 at least.
        height: lines, with axis, numbers and key; 7 at least.
        ascii_only: for terminals that have no other characters.
    """
    shown = [_finite(each) for each in marks]
    x_low, x_high = _ends([x for each in shown for x, _ in each.points])
    y_low, y_high = _ends([y for each in shown for _, y in each.points])
    labels = [_number(y_high), _number(y_low)]
    margin = max(map(len, labels))
    canvas = _Canvas(max(8, width - margin - 1), max(3, height - 4), ascii_only=ascii_only)
    for each in shown:
        for x, y in each.points:
            canvas.put((x - x_low) / (x_high - x_low), (y - y_low) / (y_high - y_low), each)
    side, floor = ("|", "-") if ascii_only else ("│", "─")
    text = Text(no_wrap=True)
    text.append(_cut(f"{' ' * margin} {y_name}", width) + "\n", "dim")
    for row in range(canvas.height):
        label = labels[0] if row == 0 else labels[1] if row == canvas.height - 1 else ""
        text.append(f"{label:>{margin}}{side}", "dim")
        text.append_text(canvas.line(row)).append("\n")
    text.append(f"{' ' * margin}{'+' if ascii_only else '└'}{floor * canvas.width}\n", "dim")
    low, high = _number(x_low), _number(x_high)
    name = _cut(x_name, canvas.width - len(low) - len(high) - 2)
    text.append(f"{' ' * margin} {low}{name:^{canvas.width - len(low) - len(high)}}{high}\n", "dim")
    text.append(" " * (margin + 1))
    for place, each in enumerate(each for each in shown if each.points):
        text.append("  " if place else "")
        text.append(each.plain if ascii_only else each.mark or "⠂", each.style)
        text.append(f" {each.name}", "dim")
    text.truncate(10**9)
    return text


def sparkline(values: Sequence[float], width: int, *, ascii_only: bool = False) -> str:
    """``▁▂▅▇█``: so many characters at most, each the last value of its share; from the least to the largest."""
    if not values or width < 1:
        return ""
    count = min(width, len(values))
    taken = [values[(place + 1) * len(values) // count - 1] for place in range(count)]
    low, high = min(taken), max(taken)
    steps = "_.-=^" if ascii_only else "▁▂▃▄▅▆▇█"
    if high <= low:
        return steps[0] * count
    return "".join(steps[min(len(steps) - 1, int((each - low) / (high - low) * len(steps)))] for each in taken)


class _Canvas:
    def __init__(self, width: int, height: int, *, ascii_only: bool) -> None:
        self.width, self.height, self._ascii = width, height, ascii_only
        self._cells: dict[tuple[int, int], tuple[str | int, str]] = {}

    def put(self, x: float, y: float, marks: Marks) -> None:
        """A point at shares in [0, 1] of width and height."""
        fine = not marks.mark and not self._ascii
        across, down = (2, 4) if fine else (1, 1)
        column = min(self.width * across - 1, int(x * self.width * across))
        row = min(self.height * down - 1, int((1.0 - y) * self.height * down))
        place = (row // down, column // across)
        if not fine:
            self._cells[place] = (marks.plain if self._ascii else marks.mark, marks.style)
            return
        known = self._cells.get(place, (0, ""))[0]
        if isinstance(known, int):  # a character that is there already is worth more than a dot
            self._cells[place] = (known | _DOTS[row % 4][column % 2], marks.style)

    def line(self, row: int) -> Text:
        text = Text()
        for column in range(self.width):
            sign, style = self._cells.get((row, column), (" ", ""))
            text.append(chr(BRAILLE + sign) if isinstance(sign, int) else sign, style)
        return text


def _finite(marks: Marks) -> Marks:
    kept = [(x, y) for x, y in marks.points if math.isfinite(x) and math.isfinite(y)]
    return Marks(kept, marks.mark, marks.plain, marks.style, marks.name)


def _ends(values: Sequence[float]) -> tuple[float, float]:
    """Round ends around the values."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    if high <= low:
        off = abs(low) * 0.1 or 0.5
        low, high = low - off, high + off
    step = 10.0 ** math.floor(math.log10((high - low) / 2.0))
    return math.floor(low / step) * step, math.ceil(high / step) * step


def _number(value: float) -> str:
    return f"{value + 0.0:.4g}"


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: max(0, width - 1)] + "…" if width > 1 else ""
