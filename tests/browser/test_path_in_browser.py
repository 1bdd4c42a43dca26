"""The path figure in a real browser: it says and draws what the recipes say, of any candidate, whoever picks it."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from search.report.facts import Facts
from search.report.hop_texts import MANY_PARTS, path_rows, path_text
from search.report.html import write_report
from search.report.path import Paths, paths_of
from search.results import Results

pytestmark = pytest.mark.slow

Look = Callable[..., Any]
SEARCH = Path(__file__).resolve().parents[1] / "search" / "conftest.py"
KINDS: dict[str, dict[str, Any]] = {
    "scaled": {"candidates": 60, "space": {"data_flow": {"repetitions": 2}}},
    "plain": {"candidates": 30, "finished": False, "space": {"data_flow": {"scales": "off", "shift": 3}}},
    "deep": {
        "candidates": 40,
        "objectives": 3,
        "space": {"data_flow": {"repetitions": 3, "ends": "free", "depth": 64}},
    },
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Results]:
    """A run of a kind, made once; the deep one has models of 32 layers."""
    spec = importlib.util.spec_from_file_location("runs_of_search_for_paths", SEARCH)
    assert spec is not None and spec.loader is not None
    runs: Any = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = runs
    spec.loader.exec_module(runs)
    build = runs.synthetic_run._get_wrapped_function()()
    plain, known = runs.GROUPS, dict[str, Results]()

    def make(kind: str) -> Results:
        if kind not in known:
            layers = 32 if kind == "deep" else 6
            own = [runs.Group(part, depth) for depth in range(layers) for part in ("attention", "mlp")]
            runs.GROUPS = [*plain[:2], *own]
            known[kind] = build(tmp_path_factory.mktemp("runs") / kind, **KINDS[kind])
            write_report(known[kind])
        return known[kind]

    return make


@pytest.fixture(params=list(KINDS))
def results(request: pytest.FixtureRequest, made: Callable[[str], Results]) -> Results:
    return made(request.param)


@pytest.fixture
def sight(look: Look, results: Results) -> Iterator[Any]:
    found = look(results.folder / "report.html", width="phone", dark=True)
    yield found
    assert found.errors == [] and found.requests == []


def paths(results: Results) -> Paths:
    found = paths_of(Facts(results))
    assert found is not None
    return found


def drawn(page: Page) -> list[dict[str, Any]]:
    """The traces of the figure as plotly has them."""
    text = page.evaluate("JSON.stringify(document.getElementById('path-0').data)")
    return list(json.loads(text))


def rows(page: Page) -> list[list[str]]:
    found = page.eval_on_selector_all(
        "#path-table tbody tr", "each => each.map(row => [...row.cells].map(c => c.textContent))"
    )
    return [list(each) for each in found]


def marks(traces: list[dict[str, Any]], kind: str, axis: str | None) -> dict[int, float]:
    """hop -> height, of the filled marks or of the bars."""
    own = [each for each in traces if each["type"] == kind and each.get("yaxis") == axis]
    own = [
        each
        for each in own
        if kind == "bar" or (each["mode"] == "markers" and isinstance(each["marker"]["symbol"], str))
    ]
    return {x: y for each in own for x, y in zip(each["x"], each["y"], strict=True)}


def test_the_page_says_every_path_as_everything_else_does(sight: Any, results: Results) -> None:
    known = paths(results)
    said = sight.page.evaluate(
        """() => Object.keys(report.data.path.candidates).map(id => { const hops = report.path.hopsOf(id);
          return [Number(id), report.path.whole(hops), report.path.short(hops), report.path.counts(id),
            report.path.rows(hops), report.recipe(Number(id))]; })"""
    )
    assert len(said) == len(known.candidates) > 10
    for id, whole, short, counts, table, recipe in said:
        hops = known.hops(id)
        assert whole == path_text(hops, MANY_PARTS, cut=False) and short == path_text(hops)
        assert counts == known.counts(id) and table == path_rows(hops)
        assert recipe == [f"{len(hops)} hop{'' if len(hops) == 1 else 's'}: {short}"]


def test_a_candidate_that_is_picked_anywhere_is_drawn(sight: Any, results: Results) -> None:
    page, known = sight.page, paths(results)
    other = max(known.candidates, key=lambda id: len(known.hops(id)))
    button = page.locator(f"#the-front [data-candidate='{other}']")
    if button.count():
        button.first.evaluate("each => each.click()")
    else:
        page.evaluate("id => report.select(id)", other)
    hops = known.hops(other)
    assert page.inner_text("#path-says").endswith(known.counts(other))
    assert page.input_value("#path-candidate") == str(other)
    assert page.text_content("#path-text") == path_text(hops, MANY_PARTS, cut=False)
    assert rows(page) == path_rows(hops)
    found = marks(drawn(page), "scatter", None)
    assert [found[at] for at in range(len(hops))] == [hop.layer for hop in hops]
    bars = marks(drawn(page), "bar", "y2")
    if known.scales == (1000, 1000):
        assert bars == {}
    else:
        assert [1.0 + bars[at] for at in range(len(hops))] == pytest.approx([hop.scale for hop in hops])
    assert path_text(hops) in page.get_attribute("#path-0", "aria-label")
    assert path_text(hops).split(" (")[0] in page.inner_text("#candidate-panel")


def test_two_paths_lie_over_each_other(sight: Any, results: Results) -> None:
    page, known = sight.page, paths(results)
    other = next(id for id in known.candidates if str(id) != page.input_value("#path-candidate"))
    page.select_option("#path-other", str(other))
    hollow = [
        each
        for each in drawn(page)
        if each["type"] == "scatter" and isinstance(each.get("marker", {}).get("symbol"), list)
    ]
    assert hollow[0]["y"] == [hop.layer for hop in known.hops(other)]
    assert page.inner_text("#path-says").endswith(known.counts(other))
    page.select_option("#path-other", "")
    assert "Compared" not in page.inner_text("#path-says")


def test_it_fits_and_can_be_read_in_both_schemes(sight: Any, results: Results) -> None:
    page = sight.page
    page.evaluate("for (const each of document.querySelectorAll('details')) each.open = true")
    other = str(next(id for id in paths(results).candidates if str(id) != page.input_value("#path-candidate")))
    page.select_option("#path-other", other)
    for across, down, dark in ((390, 844, True), (390, 844, False), (1440, 900, False), (1440, 900, True)):
        page.set_viewport_size({"width": across, "height": down})
        page.emulate_media(color_scheme="dark" if dark else "light")
        page.wait_for_timeout(300)
        assert sight.complaints() == [], (across, dark)
        sight.name = f"path-{across}{'-dark' if dark else ''}-{results.name}"
        if dark == (across == 390):
            sight.keep()


def test_without_scripts_the_path_is_there(chromium: Browser, made: Callable[[str], Results]) -> None:
    results = made("scaled")
    known, context = paths(results), chromium.new_context(java_script_enabled=False)
    try:
        page = context.new_page()
        page.goto((results.folder / "report.html").resolve().as_uri())
        pick = Facts(results).pick
        assert pick is not None
        hops = known.hops(pick)
        assert page.locator("#path-says").is_visible() and known.counts(pick) in page.inner_text("#path-says")
        assert page.inner_text("#path-text") == path_text(hops, MANY_PARTS, cut=False)
        page.locator("#path-through-the-layers summary").click()
        assert page.locator("#path-table table").is_visible()
        assert page.locator("#path-table tbody tr").count() == len(path_rows(hops))
        assert not page.locator("#path-0").is_visible() and not page.locator("#path-candidate").is_visible()
    finally:
        context.close()


def test_everything_is_reached_with_the_keyboard(sight: Any) -> None:
    page = sight.page
    for id in ("path-candidate", "path-other"):
        page.focus(f"#{id}")
        assert page.evaluate("document.activeElement.labels[0].textContent.trim().length > 1")
    page.focus("#path-candidate")
    before = page.inner_text("#path-says")
    page.keyboard.press("ArrowDown")
    assert page.inner_text("#path-says") != before
