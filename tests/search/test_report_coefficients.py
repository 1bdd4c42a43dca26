"""Heatmaps of recipes with densities, methods without coefficients and single tensors."""

from __future__ import annotations

from html.parser import HTMLParser

from merging.recipe import Assignment, Group, Recipe, SourceRef
from search.report.coefficients import coefficients_figure
from search.space import Bounds, Space

SOURCES = {alias: SourceRef(alias, f"sha256:{alias}") for alias in ("base", "math", "code")}
MLP = [Group("mlp", depth) for depth in range(3)]
TENSORS = {f"mlp.{group.depth}.{name}": group for group in MLP for name in ("up", "down")}


class _Rows(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self._in_cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag: str) -> None:
        self._in_cell = self._in_cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self._in_cell:
            self.rows[-1][-1] += data


def space() -> Space:
    return Space(
        base="base", sources=SOURCES, experts=("math", "code"), groups=MLP, granularity="model", kinds=[],
        coefficient=Bounds(0.0, 1.0), methods=["ties", "ram"], tensors=TENSORS,
    )  # fmt: skip


def test_densities_stand_beside_the_coefficients() -> None:
    ties = Assignment.of(
        "ties", {"code": {"coefficient": 0.25, "density": 0.5}, "math": {"coefficient": 1.0, "density": 0.75}}
    )
    ram = Assignment.of("ram", {"code": {}, "math": {}}, epsilon=1e-5)
    plain = Assignment.of("task_arithmetic", {"math": {"coefficient": 0.5}})
    recipe = Recipe("base", SOURCES, dict(zip(MLP, (ties, ram, plain), strict=True)))
    figure = coefficients_figure(recipe, space().table(recipe), (0.0, 1.0), space().densities(recipe))
    assert _Rows(str(figure.numbers)).rows == [
        ["group", "method", "math", "code", "density of math", "density of code"],
        ["mlp.0", "ties", "1.00", "0.25", "0.75", "0.50"],
        ["mlp.1", "ram", "–", "–", "–", "–"],
        ["mlp.2", "task_arithmetic", "0.50", "0.00", "–", "–"],
    ]
    assert figure.plots[1].traces[0]["z"] == [[0.25, None, 0.0]]
    assert figure.plots[1].traces[0]["hovertext"][0][0].endswith("(ties, density 0.50)")


def test_tensors_of_their_own_are_averaged_and_counted() -> None:
    half, whole = (Assignment.of("task_arithmetic", {"math": {"coefficient": value}}) for value in (0.5, 1.0))
    recipe = Recipe("base", SOURCES, dict.fromkeys(MLP, half), {"mlp.1.up": whole})
    figure = coefficients_figure(recipe, space().table(recipe), (0.0, 1.0), space().densities(recipe))
    assert figure.plots[0].traces[0]["z"] == [[0.5, 0.75, 0.5]]
    assert "set apart from their group: 1." in figure.caption
    assert _Rows(str(figure.numbers)).rows[0] == ["group", "method", "math", "code"]
