"""The page of a diagnosis: one HTML file that works offline, in the style of a run's report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from search.diagnosis import curve_plots
from search.diagnosis.finding import Finding, shown_reference, suggested_space
from search.diagnosis.heatmaps import figures_html, grid_of_groups, grid_of_tensors, heat_figure
from search.diagnosis.quantities import SIGN_CONFLICT, Quantity, largest, named, shown_quantities
from search.diagnosis.tables import counted, experts_table, pairs_table, scopes_table
from search.report.figures import Figure
from search.report.markup import Html, details, element, join, listed, table
from search.report.page import page
from search.report.section import Section, merged_data
from search.writing import write_whole

if TYPE_CHECKING:
    from search.diagnosis.tables import Table

MOST_BYTES = 6_000_000
"""Of the file, plotly's 4.8 million among them, as of a run's report."""


class Room(NamedTuple):
    """What there is room for.

    Attributes:
        tensors: maps of single tensors, beside those of groups.
        series: drawings of a quantity, at most.
    """

    tensors: bool
    series: int


ROOMS = (Room(True, 36), Room(False, 36), Room(False, 15), Room(False, 6))
"""What is tried, one after the other, until the page is small enough. 36 are the pairs of nine experts."""
WORST = 10
"""Groups that are named one by one."""


def write_page(finding: Finding, path: Path) -> Path:
    """Write the page of a diagnosis.

    Args:
        finding: what was found.
        path: of the file; what was there is replaced.

    Returns:
        The path.

    Raises:
        SearchError: it cannot be written. Nothing is left half written.
    """
    write_whole(path, render(finding), "the diagnosis")
    return path


def render(finding: Finding) -> str:
    """The page as HTML text. Where it would be too large, maps of tensors are left out, then pairs of experts."""
    from plotly.offline import get_plotlyjs

    plotly, text = get_plotlyjs(), ""
    for room in ROOMS:
        text = _assembled(finding, plotly, room)
        if len(text.encode("utf-8", errors="replace")) <= MOST_BYTES:
            break
    return text


def _assembled(finding: Finding, plotly: str, room: Room) -> str:
    sections = [
        _whole(finding),
        *(_heat(finding, each, room) for each in shown_quantities(finding.diagnosis)),
        _kinds(finding),
        curve_plots.section(finding.curves),
        _settings(finding),
    ]
    there = [each for each in sections if each is not None]
    figures = [plot for section in there for figure in section.figures for plot in figure.data()]
    data = merged_data({"columns": {}, "says": {}, "figures": figures}, there)
    title = f"{listed([*finding.diagnosis.aliases])}: paretomerge diagnosis"
    return page(title, _head(finding), there, data, plotly)


def _head(finding: Finding) -> Html:
    verdict = finding.verdict
    said = [element("p", each) for each in finding.paths.sentences] if finding.paths is not None else []
    said.append(element("p", verdict.headline, class_="lead"))
    if verdict.reasons:
        said.append(element("ul", [element("li", each.text) for each in verdict.reasons]))
    if verdict.advice:
        said += [element("p", each) for each in verdict.advice]
    if finding.suggests:
        said += [element("p", "In a search's config:"), element("pre", suggested_space(verdict))]
    aliases = finding.diagnosis.aliases
    base = shown_reference(finding.references.get("base", "base"))
    return element(
        "header",
        element("h1", "Can these models merge?"),
        element("p", f"base {base} · {listed(list(aliases))}", class_="state"),
        element("div", said, class_="summary"),
    )


def _whole(finding: Finding) -> Section:
    diagnosis = finding.diagnosis
    tables = [experts_table(diagnosis), pairs_table(diagnosis)]
    body = [_table(each) for each in tables if each is not None]
    note = (
        "Norms and cosines of the whole model come from sums over all its weights, ranks and subspaces are means over "
        "matrices, by their size."
    )
    return Section("Whole model", join([*body, element("p", note, class_="note")]))


def _heat(finding: Finding, quantity: Quantity, room: Room) -> Section:
    diagnosis = finding.diagnosis
    id = quantity.key.replace("_", "-")
    groups = {str(group): measures for group, measures in diagnosis.groups.items()}
    figures = heat_figure(id, diagnosis, quantity, grid_of_groups(diagnosis), groups, most=room.series)
    body, all_figures = [figures_html(figures)], [*figures]
    grid = grid_of_tensors(diagnosis) if room.tensors else None
    if grid is not None:
        finer: list[Figure] = heat_figure(
            f"{id}-tensors", diagnosis, quantity, grid, dict(diagnosis.tensors), row=26, most=room.series
        )
        body.append(details("By tensor: modules down, depths across", figures_html(finer)))
        all_figures += finer
    return Section(quantity.title, join(body), figures=tuple(all_figures))


def _kinds(finding: Finding) -> Section:
    diagnosis = finding.diagnosis
    kinds = {str(name): each for name, each in diagnosis.kinds.items()}
    parts = [_table(scopes_table("Every module kind, over all depths", "kind", kinds, diagnosis))]
    if diagnosis.pairs:
        worst = {f"{group} ({named(series)})": group for group, series, _ in largest(diagnosis, SIGN_CONFLICT, WORST)}
        scopes = {name: diagnosis.groups[group] for name, group in worst.items()}
        if scopes:
            title = f"The {len(scopes)} groups with most sign conflict, and the pair that has it"
            parts.append(_table(scopes_table(title, "group", scopes, diagnosis)))
    return Section("Kinds and groups", join(parts))


def _settings(finding: Finding) -> Section:
    diagnosis = finding.diagnosis
    aliases = ["base", *diagnosis.aliases]
    rows = [
        [alias, shown_reference(finding.references.get(alias, alias)), diagnosis.contents.get(alias, "–")]
        for alias in aliases
    ]
    models = table("The models", ["name", "named as", "hash of its content"], rows)
    settings = diagnosis.settings
    sentences = [
        f"{counted(diagnosis.whole.elements)} weights in {len(diagnosis.tensors)} tensors. Sign conflict and overlap "
        f"look at the {100 * settings.density:g} % of every tensor's elements that changed most (the density).",
        f"Measured in {diagnosis.seconds:.1f} s by paretomerge {finding.version}.",
        *(_without_paths(each, finding) for each in (*finding.left_out, *diagnosis.notes)),
    ]
    return Section("How this was measured", join([models, *(element("p", each, class_="note") for each in sentences)]))


def _without_paths(text: str, finding: Finding) -> str:
    """A sentence in which models' folders have their last name alone: a page is sent to others."""
    for folder in sorted(finding.diagnosis.references.values(), key=len, reverse=True):
        text = text.replace(folder, shown_reference(folder))
    return text


def _table(each: Table) -> Html:
    return table(each.title, each.header, each.rows, tall=len(each.rows) > 14)
