"""The state of a run as a picture for terminals: of ``watch`` in full, and of ``run`` while it goes on in short.

Every sign that counts is there without colour, and everything that comes out of a database is spelled out first.
"""

from __future__ import annotations

import bisect
import time

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from evaluators.contract import Split
from search.course import Course, Mishap, Running
from search.minibatch import independent
from search.ranges import duration
from search.remaining import Remaining, remaining
from search.report.live_plot import plot
from search.report.scatter import sparkline
from search.report.terminal import cell, visible
from search.statistics import interval_of_score
from search.watching import Look

WIDE = 120
"""Columns from which plot and tables stand side by side."""
MOST_ROWS = 6
"""Candidates under way, and kinds of failures, that are listed one by one."""
FINAL_SPLITS: tuple[Split, ...] = ("selection", "holdout")
FIRST_OF_TWO = "this is the first of two searches: the second one has not begun"
LITTLE_DISK = 5 * 10**9
"""Bytes below which the free space is pointed at."""


class Picture:
    """A look at a run, drawn to the size of whatever terminal it is printed on."""

    def __init__(self, name: str, look: Look, now: float | None = None) -> None:
        """Args:
        name: of the run.
        look: what was found.
        now: unix time; the present if None.
        """
        self._name, self._look = name, look
        self._now = time.time() if now is None else now

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        course, look = self._course, self._look
        if course is None:
            yield Text(visible(f"{self._name}: being set up; nothing is stored yet"))
            yield from self._trouble()
            return
        width, ascii_only = options.max_width, options.ascii_only
        facts = self._facts(course, ascii_only=ascii_only)
        if width >= WIDE:
            left = width // 2 - 2
            sides = Table.grid(padding=(0, 4), expand=True)
            sides.add_column(width=left)
            sides.add_column()
            height = max(12, min(left // 3, (options.height or console.height) - 8))
            sides.add_row(plot(course, left, height, ascii_only=ascii_only), facts)
            body: RenderableType = sides
        else:
            room = (options.height or console.height) - _lines(console, options, facts) - 5
            drawn = plot(course, width, max(9, min(16, room)), ascii_only=ascii_only)
            body = Group(drawn, facts)
        yield head(self._name, course, look.state, self._estimate, self._now)
        yield body
        yield from self._trouble()
        if look.first:
            yield Text(FIRST_OF_TWO)
        if look.control:
            yield Text("its control, a random search, is running: watch its folder `control` inside the run's")

    @property
    def _course(self) -> Course | None:
        return self._look.course

    @property
    def _estimate(self) -> Remaining | None:
        if self._course is None:
            return None
        return remaining(self._course, self._now if self._look.state == "running" else None)

    def _facts(self, course: Course, *, ascii_only: bool) -> Group:
        parts: list[RenderableType] = [objectives_table(course), trend_line(course, ascii_only=ascii_only)]
        parts += balanced_lines(course)
        parts += constraint_lines(course)
        parts += [*under_way_lines(course, self._look.state == "running", self._now), *mishap_lines(course, self._now)]
        if self._look.disk is not None:
            parts.append(_disk_line(self._look.disk))
        return Group(*parts)

    def _trouble(self) -> list[RenderableType]:
        if not self._look.trouble:
            return []
        return [Text(visible(f"not read this time, the picture is the last one: {self._look.trouble}"), "bold")]


def one_line(name: str, look: Look, now: float) -> str:
    """``nano: running, search, stage full, 19/40, front 4, hypervolume 0.7461, 5.3 s (3.4 s to 9.9 s) left``."""
    course = look.course
    if course is None:
        return visible(f"{name}: being set up; nothing is stored yet")
    done, total = done_of(course)
    name = f"{name} (the second has not begun)" if look.first and course.phase == "finished" else name
    said: list[str] = (
        [look.state] if course.phase == "finished" else [look.state, phase_text(course), f"{done}/{total}"]
    )
    said.append(f"front {len(course.front)}")
    if course.volume is not None:
        said.append(f"hypervolume {course.volume:.4f}")
    if course.reasons:
        said.append(f"{sum(course.reasons.values())} failed")
    estimate = remaining(course, now if look.state == "running" else None)
    if estimate is not None:
        said.append(f"{estimate.seconds.duration()} left")
    if look.trouble:
        said.append(f"not read this time: {look.trouble}")
    return visible(f"{name}: {', '.join(said)}")


def head(name: str, course: Course, state: str, estimate: Remaining | None, now: float) -> Group:
    """What runs, how far it is, and how long it may still take."""
    doing = "" if course.phase == "finished" else f", {phase_text(course)}"
    ago = f", last heard of {duration(max(0.0, now - course.at))} ago" if state == "interrupted" else ""
    title = Text(visible(f"{name}: {state}{doing}{ago}"), "bold")
    done, total = done_of(course)
    bar = Table.grid(padding=(0, 1), expand=True)
    bar.add_column(ratio=1, max_width=60)
    bar.add_column(no_wrap=True)
    bar.add_row(ProgressBar(total=max(1, total), completed=done), Text(f"{done}/{total}"))
    return Group(title, bar, Text(counts_text(course)), *map(Text, estimate_lines(course, state, estimate)))


def phase_text(course: Course) -> str:
    """``search, stage full``."""
    if course.phase == "search":
        return f"search, stage {course.name_of_stage}"
    what = {"selection": "the finalists on items they have not seen", "holdout": "the chosen merge's holdout"}
    return f"{course.phase}: {what[course.phase]}"


def done_of(course: Course) -> tuple[int, int]:
    """Candidates of the present phase that are done, and how many there are."""
    if course.phase == "selection":
        total = len({*course.finalists, *course.baselines})
        return total - len(course.pending("selection")), total
    if course.phase == "holdout":
        return len(course.opened) - len(course.pending("holdout")), max(1, len(course.opened))
    return course.told, course.config.search.budget.candidates


def counts_text(course: Course) -> str:
    """``212 candidates: 205 scored, 4 stopped early, 2 failed, 1 repeated; 3 of the scored break a constraint``."""
    return counted(
        course.told, course.states["complete"], course.states["censored"], course.states["failed"],
        course.states["duplicate"], course.states["infeasible"], len(course.front),
    )  # fmt: skip


def counted(
    told: int, scored: int, censored: int, failed: int, repeated: int, infeasible: int, front: int | None = None
) -> str:
    """See :func:`counts_text`."""
    kinds = [(scored, "scored"), (censored, "stopped early"), (failed, "failed"), (repeated, "repeated")]
    said = ", ".join(f"{count} {what}" for count, what in kinds if count)
    text = f"{told} {'candidate' if told == 1 else 'candidates'}{said and f': {said}'}"
    if infeasible:
        text += f"; {infeasible} of the scored {'breaks' if infeasible == 1 else 'break'} a constraint"
    return text if front is None else f"{text}; {front} on the front"


def estimate_lines(course: Course, state: str, estimate: Remaining | None) -> list[str]:
    """How long it may still take, and what that is taken from; nothing for a run that is over."""
    if course.phase == "finished":
        return []
    if estimate is None:
        return ["time left: not known before the first candidate is scored"]
    what = "time left" if state == "running" else "once resumed, time left"
    finals = ""
    if course.phase == "search" and course.ended is None and estimate.finals.middle >= 0.02 * estimate.seconds.middle:
        finals = f", of it {duration(estimate.finals.middle)} for the finals"
    said = [f"{what}: {estimate.seconds.duration()}{finals}"]
    if estimate.limit is not None and estimate.limit != "candidates":
        said.append(f"the search is expected to end by its limit of {estimate.limit.replace('_', '-')}")
    if course.config.search.control:
        said.append("after that its control, a random search with the same budget")
    if estimate.limit is not None and course.config.search.budget.plateau is not None:
        said.append("it ends earlier where it stops getting better (search.budget.plateau)")
    return said


def objectives_table(course: Course) -> Table:
    """The best of each objective so far, with its interval, beside the base and the expert that has the skill."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("objective", overflow="fold")
    table.add_column("best [95 %]", justify="right", no_wrap=True)
    table.add_column("candidate", justify="right", no_wrap=True)
    table.add_column("base", justify="right", no_wrap=True)
    table.add_column("expert", justify="right", no_wrap=True)
    known = {label: id for id, label in reversed(course.labels.items()) if id in course.values}
    for target in course.objectives.targets:
        best = course.best.get(target.name)
        own = known.get(f"expert {target.expert}") if target.expert is not None else None
        table.add_row(
            cell(f"{target.name}{' (less is better)' if target.metric.direction == 'minimize' else ''}"),
            "" if best is None else score_text(course, best, target.name),
            "" if best is None else str(best),
            *(_value(course, id, target.name) for id in (known.get("base"), own)),
        )
    return table


def best_line(course: Course) -> Text:
    """``best: string.accuracy 0.926 (candidate 63), language.accuracy 1.000 (2)``."""
    said = [f"{name} {course.values[id][name]:.3f} ({id})" for name, id in course.best.items()]
    return Text(visible(f"best (candidate): {', '.join(said)}" if said else "nothing is scored yet"))


def score_text(course: Course, id: int, metric: str) -> str:
    """``0.712 [0.681, 0.741]``, on the search split."""
    value, error = course.values[id][metric], course.errors[id].get(metric, float("inf"))
    own = course.started.metrics.get(metric, {"low": float("-inf"), "high": float("inf")})
    evaluator = metric.partition(".")[0]
    items = course.started.items.get(evaluator, {}).get("search", [])
    clusters = course.started.clusters.get(evaluator)
    n = independent(items, clusters, course.config.search.fidelity, id in course.labels)
    found = interval_of_score(value, error, n, (own["low"], own["high"]))
    return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"


def trend_line(course: Course, *, ascii_only: bool = False, width: int = 16) -> Text:
    """The hypervolume over the candidates, and when it last grew."""
    ago = course.since_gain
    when = "with the last candidate" if ago == 0 else f"{ago} candidate{'' if ago == 1 else 's'} ago"
    if not course.changes:
        return Text("no front yet: nothing complete and feasible")
    now, before = course.volume, course.volume_after(len(course.changes) - 1)
    if now is None or before is None:
        return Text(f"the front last changed {when}")
    line = sparkline(volumes(course, width), width, ascii_only=ascii_only)
    return Text(f"hypervolume {now:.4f} {line} last gain {now - before:+.2g}, {when}")


def volumes(course: Course, count: int) -> list[float]:
    """So many hypervolumes at most, evenly over the candidates told so far."""
    count = min(count, course.told)
    told = [(step + 1) * course.told // count for step in range(count)]
    return [course.volume_after(bisect.bisect_right(course.changes, each)) or 0.0 for each in told]


def balanced_lines(course: Course) -> list[RenderableType]:
    """The candidate that would be chosen if the search split were the last word; the choice itself, once it is made."""
    if course.chosen is not None:
        said = [Text(f"chosen: candidate {course.chosen}")]
        for split in FINAL_SPLITS:
            scores = course.on[split].get(course.chosen)
            if scores is not None:
                shown = "  ".join(f"{name} {scores[name][0]:.3f}" for name in course.objectives.names if name in scores)
                said.append(Text(visible(f"  {split}: {shown}")))
        return list(said)
    found = course.most_balanced()
    if found is None:
        return []
    best, retained = found
    shown = "  ".join(
        f"{name} {course.values[best][name]:.3f} ({kept:.0%})"
        for name, kept in zip(course.objectives.names, retained, strict=True)
    )
    return [Text(visible(f"most balanced so far: candidate {best}\n  {shown}"))]


def constraint_lines(course: Course) -> list[RenderableType]:
    """Each constraint, and by how many of the scored candidates it is kept."""
    said = course.constraints_kept()
    total = course.states["complete"]
    return [Text(visible(f"kept by {kept}/{total}: {name}")) for name, kept in said.items()]


def under_way_lines(course: Course, running: bool, now: float, most: int = MOST_ROWS) -> list[RenderableType]:
    """What is evaluated now, up to which rung, and for how long."""
    if not running:
        ids = ", ".join(map(str, list(course.running)[:most]))
        return [Text(f"was under way, and is begun again when the run is resumed: {ids}")] if ids else []
    found = sorted(course.running.values(), key=lambda each: each.since)
    if not found:
        return [Text("under way: nothing is being evaluated just now")]
    if len(found) == 1:
        return [Text(visible(f"under way: {_running(course, found[0], now)}"))]
    said = [
        Text(f"under way: {len(found)}"),
        *(Text(visible(f"  {_running(course, each, now)}")) for each in found[:most]),
    ]
    if len(found) > most:
        said.append(Text(f"  and {len(found) - most} more"))
    return list(said)


def _running(course: Course, each: Running, now: float) -> str:
    label = course.labels.get(each.candidate, "")
    what = f"candidate {each.candidate}{label and f' ({label})'}, "
    if each.split != "search":
        what += each.split
    elif each.rungs > 1:
        what += f"rung {each.rung + 1} of {each.rungs}, to {course.rung_sizes[each.rung]} items"
    else:
        what += "all items"
    return f"{what}, for {duration(max(0.0, now - each.since))}"


def mishap_lines(course: Course, now: float, width: int = 300) -> list[RenderableType]:
    """Failures by reason and incidents by kind, the most frequent first, and the latest of them."""
    said: list[RenderableType] = []
    if course.reasons:
        said.append(Text(f"failed: {sum(course.reasons.values())}", "bold"))
        for reason, count in course.reasons.most_common(3):
            said.append(Text(visible(f"  {count} x {_short(reason, width)}")))
        if len(course.reasons) > 3:
            said.append(Text(f"  and {len(course.reasons) - 3} other reasons"))
    if course.incidents:
        kinds = ", ".join(f"{count} x {what}" for what, count in course.incidents.most_common())
        said.append(Text(visible(f"mended: {kinds}"), "bold"))
    last = course.mishaps[-1] if course.mishaps else None
    if last is not None and (last.what != "failed" or len(course.reasons) > 1):
        said.append(Text(visible(f"  latest: {_mishap(last, now, width)}")))
    return said


def _mishap(each: Mishap, now: float, width: int) -> str:
    who = "" if each.candidate is None else f"candidate {each.candidate}, "
    return f"{who}{each.what} {duration(max(0.0, now - each.at))} ago: {_short(each.detail, width)}"


def _disk_line(free: int) -> Text:
    if free >= LITTLE_DISK:
        return Text(f"disk: {free / 1e9:.0f} GB free", "dim")
    return Text(f"disk: only {free / 1e9:.1f} GB free where the run is", "bold")


def _value(course: Course, id: int | None, metric: str) -> str:
    return "" if id is None or metric not in course.values[id] else f"{course.values[id][metric]:.3f}"


def _short(text: str, width: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= width else f"{line[: width - 1]}…"


def _lines(console: Console, options: ConsoleOptions, what: RenderableType) -> int:
    return len(console.render_lines(what, options, pad=False))
