"""The front of a run that may still go on, as a plot of characters."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from search.course import Course
from search.report.scatter import Marks, scatter
from search.report.terminal import visible


def pair_of(course: Course) -> tuple[int, int]:
    """Places of the two objectives that the front trades against each other the most: the lowest rank correlation over
    the front; the first two where there is nothing to tell."""
    count = len(course.objectives.targets)
    if count == 2 or len(course.front) < 3:
        return 0, 1
    points = course.front_points.argsort(axis=0).argsort(axis=0).astype(float)
    centred = points - points.mean(axis=0)
    pairs = [(i, j) for i in range(count) for j in range(i + 1, count)]
    return min(pairs, key=lambda pair: float((centred[:, pair[0]] * centred[:, pair[1]]).sum()))


def plot(course: Course, width: int, height: int, *, ascii_only: bool) -> RenderableType:
    """Scores on the search split; one objective over the candidates, of several the two that are traded the most.

    Args:
        course: where the run stands.
        width: characters.
        height: lines.
        ascii_only: for terminals that have no other characters.
    """
    if not course.values:
        return Text("nothing is scored yet", "dim")
    names = [visible(each) for each in course.objectives.names]
    if len(names) == 1:
        return _line_plot(course, names[0], width, height, ascii_only=ascii_only)
    first, second = (course.objectives.names[place] for place in pair_of(course))

    def points(ids: Sequence[int]) -> list[tuple[float, float]]:
        rows = [course.values[id] for id in ids if id in course.values]
        return [(row[first], row[second]) for row in rows if first in row and second in row]

    front, labels = set(course.front), course.labels
    behind = [id for id in course.values if id not in front and id not in course.infeasible]
    experts = [id for id in behind if labels.get(id, "").startswith("expert ")]
    marks = [
        Marks(points([id for id in behind if id not in labels]), "", ".", "", "scored"),
        Marks(points([id for id in behind if id in labels and id not in experts]), "+", "+", "", "baseline"),
        Marks(points([id for id in course.values if id in course.infeasible]), "▿", "v", "", "breaks a constraint"),
        Marks(points(experts), "×", "x", "", "expert"),
        Marks(points([id for id in course.front if id not in labels]), "●", "o", "bold cyan", "front"),
        Marks(points([id for id in course.front if id in labels]), "◆", "#", "bold cyan", "baseline on the front"),
        Marks(points([] if course.chosen is None else [course.chosen]), "★", "*", "bold", "chosen"),
    ]
    drawn = scatter(marks, visible(first), visible(second), width, height, ascii_only=ascii_only)
    if len(names) > 2:
        more = "" if len(names) == 3 else f" and {len(names) - 3} more"
        others = [each for each in names if each not in (visible(first), visible(second))]
        return Group(drawn, Text(f"two of {len(names)} objectives; {others[0]}{more} not shown", "dim"))
    return drawn


def _line_plot(course: Course, name: str, width: int, height: int, *, ascii_only: bool) -> Text:
    metric = course.objectives.names[0]
    rows = [(float(id), row[metric]) for id, row in course.values.items() if metric in row]
    front = [point for point in rows if int(point[0]) in set(course.front)]
    broken = [point for point in rows if int(point[0]) in course.infeasible]
    marks = [
        Marks(rows, "", ".", "", "scored"),
        Marks(broken, "▿", "v", "", "breaks a constraint"),
        Marks(front, "●", "o", "bold cyan", "best"),
    ]
    return scatter(marks, "candidate", name, width, height, ascii_only=ascii_only)
