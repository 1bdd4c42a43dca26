"""``report.html``: one file that works offline and claims nothing that its numbers do not carry."""

from __future__ import annotations

import glob
import os
import tempfile
from pathlib import Path

from merging.durable import clear_abandoned, hold
from merging.methods import is_ready
from search.errors import SearchError
from search.report import tables
from search.report.coefficients import coefficients_figure
from search.report.convergence import convergence_figure
from search.report.facts import Facts
from search.report.figures import Figure, front_figure, page_data
from search.report.markup import Html, element
from search.report.page import page
from search.report.summary import choice_rule, summary
from search.results import Results

REPORT = "report.html"


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
    # what a stranger's database holds may not be valid text; it is shown with question marks
    text = render(results).encode("utf-8", errors="replace")
    temporary: Path | None = None
    held = -1
    try:
        clear_abandoned(path.parent, f".{glob.escape(path.name)}.partial-*")
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.partial-", delete=False) as file:
            temporary = Path(file.name)
            held = hold(temporary)
            file.write(text)
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise SearchError(
            f"{path}: the report cannot be written: {error.strerror}. Expected a place in an existing folder that may "
            "be written to; the run itself is safe, `paretomerge report RUN` writes the report again."
        ) from error
    finally:
        if held >= 0:
            os.close(held)
    return path


def render(results: Results) -> str:
    """The report as HTML text."""
    from plotly.offline import get_plotlyjs

    facts = Facts(results)
    figures: list[Figure] = []
    body = [_head(facts), *_found(facts, figures), *_made(facts)]
    return page(f"{results.name}: paretomerge report", body, page_data(facts, figures), get_plotlyjs())


def _head(facts: Facts) -> Html:
    results = facts.results
    state = f"{results.state} · {len(results.candidates)} of {results.config.search.budget.candidates} candidates"
    return element(
        "header",
        element("h1", results.name),
        element("p", state, class_="state"),
        element("div", [element("p", _unbroken(each)) for each in summary(facts)], class_="summary"),
    )


def _found(facts: Facts, figures: list[Figure]) -> list[Html]:
    """What there is to show once a candidate has scores; figures are collected for the page's script."""
    if facts.pick is None:
        return []

    def shown(figure: Figure) -> Html:
        figures.append(figure)
        return figure.html()

    pick = f"the {facts.pick_name}, candidate {facts.pick}"
    return [
        _section("The front", shown(front_figure(facts))),
        _section(
            f"{facts.pick_name.capitalize()} and baselines",
            element("p", choice_rule(facts), class_="note"),
            tables.scores_table(facts),
            tables.comparisons_table(facts),
            tables.optimism_table(facts),
        ),
        _section(f"Coefficients of {pick}", _coefficients(facts, facts.pick, figures)),
        _section("Convergence", shown(convergence_figure(facts))),
        _section("Members of the front", tables.front_table(facts)),
    ]


def _coefficients(facts: Facts, pick: int, figures: list[Figure]) -> Html:
    methods = [each if isinstance(each, str) else each.name for each in facts.results.config.space.methods]
    foreign = [each for each in methods if not is_ready(each)]
    if foreign:  # a run may be a stranger's, and to read a report is no consent to run what came with it
        return element(
            "p",
            f"They are not drawn, since that would run the code of {', '.join(foreign)}, which a report does not do; "
            "the report that the search itself writes has them.",
        )
    try:
        recipe = facts.results.recipe(pick)
        coefficients = facts.results.stages[facts.candidates[pick].stage].space.table(recipe)
    except SearchError as error:
        return element("p", str(error))
    densities = facts.results.stages[facts.candidates[pick].stage].space.densities(recipe)
    figure = coefficients_figure(recipe, coefficients, facts.results.config.space.coefficient, densities)
    figures.append(figure)
    return figure.html()


def _made(facts: Facts) -> list[Html]:
    return [
        _section("Failures", tables.failures_table(facts)),
        _section("Where the time went", tables.time_table(facts)),
        _section("How this was made", tables.made_of(facts)),
        _section("Going on", tables.commands(facts)),
    ]


def _section(title: str, *content: Html) -> Html:
    name = "-".join(title.split(",")[0].lower().split())
    return element("section", element("h2", title), *content, id=name)


def _unbroken(text: str) -> str:
    """No line ends between a number and what belongs to it."""
    return text.replace(" %", "\u00a0%").replace(" ± ", "\u00a0±\u00a0")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
