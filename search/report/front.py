"""The front as people see it: drawings, legend, how to read them, and every number in a table."""

from __future__ import annotations

import itertools

from evaluators.contract import Split
from search.minibatch import in_words
from search.report.facts import Facts, shown_folder
from search.report.figures import Figure, has_intervals
from search.report.front_plots import MARKS, MOST_LINES, MOST_PAIRS, Frame, has_bars, pair, parallel, places, strip
from search.report.markup import (
    Html,
    candidate,
    count,
    element,
    join,
    listed,
    percent,
    ranged,
    scrolling,
)
from search.report.path import path_scripts
from search.report.section import Section
from search.stages import stage_names

MOST_ROWS = 150
"""Members of the front in the table: a few hundred bytes each, and nobody reads more."""


def front_section(facts: Facts) -> Section | None:
    """The front, what is known of the candidate that the reader points at, and the numbers; None before any score."""
    if facts.pick is None and not facts.scored:
        return None
    frame = Frame(facts)
    figure = front_figure(frame)
    panel = element(
        "p", "Select a candidate in a drawing or in a table: what is known of it stands here.", id="candidate-panel",
        class_="panel", role="status",
    )  # fmt: skip
    data = {
        "front": {
            "view": frame.view,
            "places": places(frame),
            "names": {str(id): name for id, name in facts.names.items()},
        }
    }
    scripts = (*path_scripts(facts), "front")
    return Section("The front", join([figure.html(), panel]), (figure,), data, scripts=scripts, styles=("details",))


def front_figure(frame: Frame) -> Figure:
    """All candidates, the front, the pick and the baselines; pairs of objectives where there are more than two."""
    targets = frame.facts.targets
    pairs = list(itertools.combinations(range(len(targets)), 2))
    if not pairs:
        plots = [strip(frame)]
    else:
        few = len(pairs) <= MOST_PAIRS
        plots = [pair(frame, x, y, hidden=not few and place > 0) for place, (x, y) in enumerate(pairs)]
    if len(targets) > 3:
        plots.insert(0, parallel(frame))
    return Figure(
        "front",
        plots,
        _caption(frame),
        _numbers(frame),
        _legend(frame),
        columns=min(len(pairs), 2) if 1 < len(pairs) <= MOST_PAIRS else 1,
        controls=_controls(frame, pairs),
    )


def _legend(frame: Frame) -> list[tuple[str, str, str]]:
    facts = frame.facts
    legend = [("●", "--faint", "all candidates, search scores")]
    if facts.infeasible:
        legend.append(("○", "--faint", f"breaks a constraint ({len(facts.infeasible)})"))
    if set(facts.results.front) - {facts.pick}:
        legend.append(("●", "--front", f"front, {frame.view} scores"))
    for each in facts.named:
        broken = ", breaks a constraint" if each.id in facts.infeasible else ""
        text = f"{each.name} · candidate {each.id}{broken}"
        legend.append((MARKS[frame.marks[each.id]], f"--{each.role}", text))
    if facts.results.chosen is not None:
        legend.append(("◯", "--recommended", "recommended for the mix below"))
    return [*legend, ("◯", "--ink", "selected")]


def _controls(frame: Frame, pairs: list[tuple[int, int]]) -> Html:
    parts = []
    if "holdout" in frame.views:
        opened = len(frame.shown("holdout"))
        texts = {frame.view: f"{frame.view} scores", "holdout": f"holdout scores of the {opened} that were opened"}
        choices = [
            element(
                "label",
                element("input", type="radio", name="front-view", value=view, checked=view == frame.view),
                f" {text}",
            )
            for view, text in texts.items()
        ]  # fmt: skip
        parts.append(element("fieldset", element("legend", "Show"), choices, class_="switch"))
    if len(pairs) > MOST_PAIRS:
        names = [each.name for each in frame.facts.targets]
        first = 1 if len(names) > 3 else 0  # the parallel lines come before the pairs
        options = [
            element("option", f"{names[y]} against {names[x]}", value=f"front-{first + place}")
            for place, (x, y) in enumerate(pairs)
        ]
        parts.append(element("label", "Pair of objectives: ", element("select", options, id="front-pair")))
    return element("div", parts, class_="controls") if parts else Html()


def _caption(frame: Frame) -> str:
    facts = frame.facts
    scored = in_words(facts.results.config.search.fidelity)
    said = [
        f"Each faint dot is a candidate, placed by its search scores. {scored}A candidate is on the front when no "
        "other one is at least as good on every objective and better on one."
    ]
    if frame.view == "selection":
        said.append(
            "The front, the chosen merge and the baselines are placed by their selection scores: the front's members "
            "were picked for their search scores, which flatter them."
        )
    else:
        said.append(
            "Everything is placed by search scores, also the front: its members were picked for these very scores, so "
            "they are somewhat worse than they look."
        )
    if "holdout" in frame.views:
        said.append(
            "Holdout scores are shown only of those candidates whose holdout was opened; the dotted line leads from "
            "where each of them stood before."
        )
    said.append(
        "Bars are 95 % intervals for the choice of items. Point at a mark for its scores and its recipe; click it to "
        "select the candidate in every part of this page (in the table, press its number)."
    )
    said += _left_out(frame)
    if len(facts.targets) > 2:
        said.append("The front is taken over all objectives at once; in one pair of them a member may look dominated.")
    return " ".join(said)


def _left_out(frame: Frame) -> list[str]:
    """What the drawings do not show."""
    facts, said = frame.facts, []
    states = [each.state for each in facts.results.candidates]
    missing = [
        f"{number} {what}"
        for number, what in ((states.count("failed"), "failed"), (states.count("censored"), "stopped early"))
        if number
    ]
    if missing:
        said.append(f"Not drawn, since they have no full scores: {listed(missing)} (see Failures).")
    if len(facts.targets) > 1 and not has_bars(frame):
        said.append("The front has no bars of its own, which would cover each other; its intervals are in the table.")
    if frame.every > 1:
        said.append(f"To keep the page quick, one faint dot in {frame.every} is drawn; the table has all.")
    if not has_intervals(facts):
        said.append("To keep the file small, intervals are given for marks alone, not for every dot.")
    outside = frame.outside()
    if outside:
        said.append(f"{count(outside, 'candidate')} {_lies(outside)} outside the frame; a double click shows all.")
    if len(facts.targets) > 3 and len(frame.front) > MOST_LINES:
        said.append(f"Lines are drawn for the {MOST_LINES} members that the rule of the choice prefers.")
    return said


def _numbers(frame: Frame) -> Html:
    intervals = ", with 95 % intervals" if has_intervals(frame.facts) else ""
    every = element(
        "details",
        element("summary", f"All {len(frame.facts.scored)} scored candidates"),
        scrolling(
            element(
                "table",
                element("caption", f"Search scores of every scored candidate{intervals}"),
                id="all-candidates",
            ),
            "all scored candidates, search scores",
            tall=True,
        ),
        class_="fill",
    )
    return join([front_table(frame), every])


def front_table(frame: Frame) -> Html:
    """The named candidates and the members of the front: scores with intervals, what they keep, recipes."""
    facts, view = frame.facts, frame.view
    named = list(dict.fromkeys([*(each.id for each in facts.named), *facts.picks]))
    members = [id for id in frame.front if id not in set(named)]
    splits: list[Split] = ["selection", "search"] if view == "selection" else ["search"]
    rows = [_row(frame, id, splits) for id in [*named, *members[:MOST_ROWS]]]
    corner = [
        element("th", each, rowspan="2", scope="col", class_=kind)
        for each, kind in (("candidate", ""), ("who", "words"))
    ]
    groups = [element("th", each.name, colspan=str(len(splits) + 1), scope="colgroup") for each in facts.targets]
    ends = [
        element("th", each, rowspan="2", scope="col", class_=kind) for each, kind in (("recipe", "words"), ("hash", ""))
    ]
    under = [element("th", each, scope="col") for _ in facts.targets for each in (*splits, "kept")]
    caption = f"The front and the named candidates, with 95 % intervals; kept: retention on {view} items"
    if len(members) > MOST_ROWS:
        caption += (
            f". The {MOST_ROWS} members that the rule of the choice prefers, of {len(facts.results.front)}; "
            f"`paretomerge status {_run(facts)} --json` lists all"
        )
    whole = element(
        "table",
        element("caption", caption),
        element("thead", element("tr", corner, groups, ends), element("tr", under)),
        element("tbody", rows),
    )
    return scrolling(whole, caption, tall=True)


def _row(frame: Frame, id: int, splits: list[Split]) -> Html:
    facts = frame.facts
    split = facts.best_split(id)
    retained = facts.retention(id, split)
    cells = []
    for index, target in enumerate(facts.targets):
        cells += [element("td", ranged(target, facts.interval(id, each, target))) for each in splits]
        scaled = retained is not None and facts.has_scale(target, split)
        cells.append(element("td", percent(retained[index]) if retained is not None and scaled else "–"))
    who = facts.names.get(id) or f"front, {stage_names(facts.results.config)[facts.candidates[id].stage]}"
    return element(
        "tr",
        element("th", candidate(id), scope="row"),
        element("td", who, class_="words"),
        cells,
        element("td", class_="words", data_recipe=str(id)),
        element("td", element("code", facts.candidates[id].recipe_hash[:12])),
        class_="pick" if id == facts.pick else "",
    )


def _lies(number: int) -> str:
    return "lies" if number == 1 else "lie"


def _run(facts: Facts) -> str:
    return str(shown_folder(facts.results.folder))
