"""``report.html``: one file that works offline and claims nothing that its numbers do not carry."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from evaluators.contract import EvaluatorError
from merging.recipe import MergingError
from search.errors import SearchError
from search.report import mix, tables
from search.report.convergence import convergence_section
from search.report.environment import environment_section
from search.report.facts import Facts, without_paths
from search.report.failures import failures_section
from search.report.figures import page_data
from search.report.front import front_section
from search.report.items import items_section
from search.report.layers import layers_section
from search.report.markup import Html, element, join
from search.report.optimism import optimism_section
from search.report.page import page, script_json
from search.report.path import path_section
from search.report.section import Builder, Section, merged_data
from search.report.summary import choice_rule, summary
from search.report.timing import time_section
from search.results import Results
from search.writing import write_whole

REPORT = "report.html"

MOST_BYTES = 6_000_000
"""Of the file, plotly's 4.8 million among them: what opens at once, and can be sent by mail."""
_ATTEMPTS = 5
"""How often a part that is too large is made again, each time in half of the room."""


def write_report(results: Results, path: Path | None = None) -> Path:
    """Write the report of a run, finished or not.

    The file is written beside its place and renamed, so that a reader never meets half of one.

    Args:
        results: what the run has found.
        path: of the HTML file; ``report.html`` in the run directory if None.

    Returns:
        The path.

    Raises:
        SearchError: it cannot be written.
    """
    path = path or results.folder / REPORT
    advice = "The run itself is safe: `paretomerge report RUN` writes the report again."
    write_whole(path, render(results), "the report", advice=advice)
    return path


def render(results: Results) -> str:
    """The report as HTML text."""
    from plotly.offline import get_plotlyjs

    facts = Facts(results)
    built = {title: _built(title, build, facts) for title, build in SECTIONS}
    header, plotly = _head(facts), get_plotlyjs()
    text = _assembled(facts, header, built, plotly)
    over = _beyond(text)
    if over <= 0:
        return text
    # what holds most data is made again with less room for it
    much = {title: section for title in THINNED if (section := built[title]) is not None}
    taken = sum(len(script_json(dict(section.data))) for section in much.values())
    facts.room = max(0.05, 0.95 * (taken - over) / max(1, taken))
    for _ in range(_ATTEMPTS):
        built |= {title: _built(title, build, facts) for title, build in SECTIONS if title in much}
        text = _assembled(facts, header, built, plotly)
        if _beyond(text) <= 0:
            break
        facts.room /= 2.0
    return text


def _beyond(text: str) -> int:
    """Bytes by which the file is too large."""
    return len(text.encode("utf-8", errors="replace")) - MOST_BYTES


def _assembled(facts: Facts, header: Html, built: Mapping[str, Section | None], plotly: str) -> str:
    sections = [each for each in built.values() if each is not None]
    figures = [figure for section in sections for figure in section.figures]
    data = merged_data(page_data(facts, figures), sections)
    return page(f"{facts.results.name}: paretomerge report", header, sections, data, plotly)


def _built(title: str, build: Builder, facts: Facts) -> Section | None:
    """A section, or why there is none: what is damaged or foreign in one part of a run must not lose the others."""
    try:
        return build(facts)
    except (SearchError, MergingError, EvaluatorError) as error:
        return Section(title, element("p", _excuse(facts, error), class_="note"))


def _excuse(facts: Facts, error: Exception) -> str:
    return f"This part cannot be shown. {without_paths(str(error), facts.results)}"


def _head(facts: Facts) -> Html:
    results = facts.results
    state = f"{results.state} · {len(results.candidates)} of {results.config.search.budget.candidates} candidates"
    try:
        said = [_unbroken(each) for each in summary(facts)]
    except (SearchError, MergingError, EvaluatorError) as error:
        said = [_excuse(facts, error)]
    return element(
        "header",
        element("h1", results.name),
        element("p", state, class_="state"),
        element(
            "div",
            [element("p", each, class_="" if place else "lead") for place, each in enumerate(said)],
            class_="summary",
        ),
    )


def _scores(facts: Facts) -> Section | None:
    if facts.pick is None:
        return None
    parts = [
        element("p", choice_rule(facts), class_="note"),
        tables.scores_table(facts),
        tables.comparisons_table(facts),
    ]
    return Section(f"{facts.pick_name.capitalize()} and baselines", join(parts))


def _commands(facts: Facts) -> Section | None:
    return Section("Going on", tables.commands(facts))


SECTIONS: list[tuple[str, Builder]] = [
    ("The front", front_section),
    (mix.TITLE, mix.mix_section),
    ("Scores", _scores),
    ("Path through the layers", path_section),
    ("Coefficients by layer", layers_section),
    ("Optimism", optimism_section),
    ("Items won and lost", items_section),
    ("Convergence", convergence_section),
    ("Failures", failures_section),
    ("Where the time went", time_section),
    ("How this was made", environment_section),
    ("Going on", _commands),
]
"""The report's sections in their order: the title of one that cannot be made, and what makes it."""

THINNED = ("Path through the layers", "Coefficients by layer", "Items won and lost")
"""Sections that take less where there is less :attr:`search.report.facts.Facts.room`."""


def _unbroken(text: str) -> str:
    """No line ends between a number and what belongs to it."""
    return text.replace(" %", "\u00a0%").replace(" ± ", "\u00a0±\u00a0")
