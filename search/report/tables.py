"""The report's tables: scores by split, the front, failures, time, and what the run was made of."""

from __future__ import annotations

import shlex
from pathlib import Path

from evaluators.contract import SPLITS, Split
from search.minibatch import in_words
from search.objectives import Target
from search.report.claim import p_value
from search.report.facts import Facts, shown_folder
from search.report.markup import (
    Html,
    element,
    join,
    percent,
    ranged,
    scrolling,
    table,
)


def scores_table(facts: Facts) -> Html:
    """The pick and the baselines on every split, with 95 % intervals, and what they keep on the last of them."""
    splits = [split for split in SPLITS if any(each.id in facts.results.scores[split] for each in facts.named)]
    rows = []
    for each in facts.named:
        name = element("th", each.name, element("small", f" candidate {each.id}"), scope="row")
        cells = _cells(facts, each.id, splits, next(split for split in reversed(SPLITS) if _has(facts, each.id, split)))
        rows.append(element("tr", name, cells, class_="pick" if each.role == "chosen" else ""))
    note = "Intervals are for the choice of items, each split's own. " + in_words(facts.results.config.search.fidelity)
    if splits != ["search"]:
        note += "–: not scored on that split. "
    note += (
        "kept: (score − base) / (own expert − base) on the last split that has scores; – where there is no such scale."
    )
    corner = [element("th", "merge", rowspan="2", scope="col")]
    whole = _by_objective(facts, "Scores with 95 % intervals, by split", corner, splits, rows)
    return join([whole, element("p", note, class_="note")])


def _by_objective(
    facts: Facts, caption: str, corner: list[Html], splits: list[Split], rows: list[Html], *, tall: bool = False
) -> Html:
    """A table with a group of columns for every objective: its score on each split, and what is kept."""
    groups = [
        element("th", each.name, element("small", _direction(each)), colspan=str(len(splits) + 1), scope="colgroup")
        for each in facts.targets
    ]
    under = [element("th", each, scope="col") for _ in facts.targets for each in (*splits, "kept")]
    whole = element(
        "table",
        element("caption", caption),
        element("thead", element("tr", corner, groups), element("tr", under)),
        element("tbody", rows),
    )
    return scrolling(whole, caption, tall=tall)


def _cells(facts: Facts, id: int, splits: list[Split], kept_on: Split) -> list[Html]:
    """What :func:`_by_objective` shows of one candidate."""
    retained = facts.retention(id, kept_on)
    cells = []
    for index, target in enumerate(facts.targets):
        cells += [element("td", ranged(target, facts.interval(id, split, target))) for split in splits]
        scaled = retained is not None and facts.has_scale(target, kept_on)
        cells.append(element("td", percent(retained[index]) if retained is not None and scaled else "–"))
    return cells


def comparisons_table(facts: Facts) -> Html:
    """The chosen merge against every baseline, item by item on holdout; empty before its holdout is known."""
    claims = facts.results.claims
    if claims is None or not claims.comparisons:
        return Html()
    rows = []
    for each in claims.comparisons:
        scalar = each.scalar
        row = [
            each.baseline.label,
            f"{_signed(scalar.difference, scalar.low, scalar.high)}, p {p_value(each.p_scalar)}",
        ]
        for target in facts.targets:
            pair = each.objectives[target.name]
            row.append(f"{_signed(pair.difference, pair.low, pair.high)}, p {p_value(each.p[target.name])}")
        rows.append(row)
    return join(
        [
            table(
                "The chosen merge against every baseline, on holdout",
                ["baseline", "by the rule of the choice", *(target.name for target in facts.targets)],
                rows,
            ),
            element(
                "p",
                "Chosen − baseline on the same items, with 95 % intervals. The rule's number is about the smallest "
                "retention; its p-value is one-sided, that of the objectives two-sided. p-values are adjusted (Holm): "
                "over all baselines, and for the objectives over baselines × objectives.",
                class_="note",
            ),
        ]
    )


def _signed(value: float, low: float, high: float) -> str:
    return f"{value:+.3f} ({low:+.3f} to {high:+.3f})".replace("-", "−")


def commands(facts: Facts) -> Html:
    """How to export, and how to go on."""
    folder = shown_folder(facts.results.folder)
    run = shlex.quote(str(folder))
    parts = []
    if facts.pick is not None:
        out = shlex.quote(str(folder / "export" / str(facts.pick)))
        parts += [
            element("p", f"To have the {facts.pick_name} as a Hugging Face folder:"),
            element("pre", f"paretomerge export {run} --candidate {facts.pick} --out {out}"),
        ]
    words = ["paretomerge run CONFIG"]
    words += [] if folder.parent == Path("runs") else ["--runs", shlex.quote(str(folder.parent))]
    words += [] if folder.name == facts.results.config.name else ["--name", shlex.quote(folder.name)]
    if facts.results.state == "finished":
        words.append(f"--set search.budget.candidates={2 * facts.results.config.search.budget.candidates}")
        text = "To go on with a larger budget:"
    else:
        text = "To go on:"
    return join(
        [
            *parts,
            element("p", text),
            element("pre", " ".join(words)),
            element(
                "p",
                "CONFIG is the file that the run was started with, with the same --set options as then; config.yaml in "
                "the run directory is a copy of it, and resolved.yaml has every value.",
                class_="note",
            ),
        ]
    )


def _has(facts: Facts, id: int, split: Split) -> bool:
    return id in facts.results.scores[split]


def _direction(target: Target) -> str:
    unit = f", {target.metric.unit}" if target.metric.unit else ""
    return f" {target.metric.direction}{unit}"
