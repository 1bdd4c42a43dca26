"""The report of every kind of run in a real browser: on a phone and a desktop, light and dark, on paper, without
scripts, by keyboard."""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser

from evaluators.contract import Metric
from search.constraints import Constraint
from search.report.html import MOST_BYTES, write_report
from search.results import Results

pytestmark = pytest.mark.slow

Look = Callable[..., Any]
EVIL = "</script><img src=x onerror=alert(1)> %{x} <b>"
RIGHT_TO_LEFT = "\u202eevil\u2066 מודל"
SEARCH = Path(__file__).resolve().parents[1] / "search" / "conftest.py"
LONG = "a_" * 31 + "b"
SHARE = Metric("accuracy", "maximize", 0.0, 1.0)
WIDTHS = {"phone": (390, 844), "desktop": (1440, 900)}
AS_WIDE_AS_ITS_PLACE = """() => [...document.querySelectorAll(".plot")].filter(each => each.offsetParent).every(each =>
  each.querySelector(".main-svg") && Math.abs(each.querySelector(".main-svg").clientWidth - each.clientWidth) <= 2)"""
KINDS: dict[str, dict[str, Any]] = {
    "two": {"candidates": 40},
    "three": {"metrics": [SHARE, SHARE, Metric("error", "minimize", 0.0, 100.0)], "candidates": 60},
    "one": {"objectives": 1, "candidates": 24},
    "six": {"objectives": 6, "candidates": 30},
    "hostile": {"objectives": 3, "candidates": 24, "failures": lambda id: EVIL * 40 if id % 5 == 4 else None},
    "unfinished": {"candidates": 40, "finished": False},
    "nothing": {"candidates": 24, "failures": lambda id: "the merge has NaN in 3 tensors"},
    "begun": {"candidates": 1, "finished": False},
    "infeasible": {
        "candidates": 24,
        "limits": [Constraint(f"{each}.accuracy", "at_least", 0.95, 0.9, 0.0, 1.0) for each in ("string", "language")],
    },
}


@pytest.fixture(scope="module")
def runs() -> ModuleType:
    """The factory of runs that the tests of search use."""
    spec = importlib.util.spec_from_file_location("runs_of_search_for_any", SEARCH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def made(runs: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Results]:
    """A run of a kind, made once."""
    build = runs.synthetic_run._get_wrapped_function()()
    known: dict[str, Results] = {}
    plain = runs.SKILLS

    def make(kind: str) -> Results:
        if kind in known:
            return known[kind]
        names = {"six": (*plain, "logic", "code"), "hostile": ("string", LONG, "X-1", "dates")}
        runs.SKILLS = names.get(kind, plain)
        try:
            results: Results = build(tmp_path_factory.mktemp("runs") / kind, **KINDS[kind])
        finally:
            runs.SKILLS = plain
        if kind == "hostile":
            signs = {1: EVIL, 2: RIGHT_TO_LEFT, 3: "x" * 400}
            labelled = [replace(each, label=signs.get(each.id % 7, each.label)) for each in results.candidates]
            results = replace(results, candidates=tuple(labelled))
        return known.setdefault(kind, results)

    return make


@pytest.fixture(scope="module")
def report(made: Callable[[str], Results]) -> Callable[[str], Path]:
    """The report of a run of a kind, written once."""
    known: dict[str, Path] = {}
    return lambda kind: known[kind] if kind in known else known.setdefault(kind, write_report(made(kind)))


@pytest.mark.parametrize("kind", KINDS)
def test_any_run_is_shown_well_on_a_phone_and_a_desktop_in_both_schemes(
    look: Look, report: Callable[[str], Path], kind: str
) -> None:
    sight = look(report(kind), width="phone", dark=True, name=f"report-{kind}")
    sight.page.evaluate("for (const each of document.querySelectorAll('details')) each.open = true")
    for width, dark in (("phone", True), ("phone", False), ("desktop", False), ("desktop", True)):
        across, down = WIDTHS[width]
        if sight.page.viewport_size["width"] != across:
            sight.page.set_viewport_size({"width": across, "height": down})
        sight.page.emulate_media(color_scheme="dark" if dark else "light")
        sight.until(AS_WIDE_AS_ITS_PLACE)
        sight.page.wait_for_timeout(200)  # the figures follow
        assert sight.complaints() == [], (width, dark)
        if dark == (width == "phone"):
            sight.name = f"report-{kind}-{width}{'-dark' if dark else ''}"
            sight.keep()


def test_where_nothing_is_feasible_it_is_said_and_shown(look: Look, report: Callable[[str], Path]) -> None:
    page = look(report("infeasible")).page
    assert "0 of 24 scored candidates kept both on search items, so there is nothing" in page.inner_text("header")
    assert "breaks a constraint (24)" in page.inner_text("#the-front")
    assert page.locator("#front-0 .main-svg").count() > 0
    assert "No candidate keeps the constraints" in page.inner_text("#choose-a-mix")


def test_signs_that_turn_the_order_of_words_are_spelled_out(look: Look, report: Callable[[str], Path]) -> None:
    page = look(report("hostile")).page
    shown = page.evaluate("document.body.innerText + JSON.stringify(report.data)")
    assert r"\u202eevil" in shown and not set(shown) & set("\u202e\u2066")


def test_the_audit_sees_what_is_wrong(look: Look, tmp_path: Path) -> None:
    """So that an empty list above means something."""
    page = tmp_path / "bad.html"
    page.write_text(
        "<!DOCTYPE html><title>x</title><link rel=icon href=data:,><h1>a</h1><h3>b</h3>"
        "<table><tr><td>1</td></tr></table>"
        "<p style='color:#999;background:#fff;width:3000px'>pale</p><button></button><div class=plot id=a>c</div>"
        "<p id=a>twice</p><img src=http://127.0.0.1:8/x.png>"
    )
    said = "\n".join(look(page).complaints())
    signs = (
        "expected 1 main, found 0", "no language", "skips a level", "without caption", "contrast 2.85", "without name",
        "not drawn", "twice on the page: #a", "scrolls sideways", "asked for: http://127.0.0.1:8",
    )  # fmt: skip
    for each in signs:
        assert each in said


@pytest.mark.parametrize("kind", ["three", "infeasible"])
def test_every_control_is_reached_with_the_tab_key_and_its_focus_is_seen(
    look: Look, report: Callable[[str], Path], kind: str
) -> None:
    page = look(report(kind)).page
    expected = page.evaluate(
        """() => {
          const found = [...document.querySelectorAll("a[href], button, input, select, summary, [tabindex='0']")]
            .filter(each => each.checkVisibility() && !each.closest(".js-plotly-plot"))
            .filter(each => !(each.type === "radio" && !each.checked));  // a group is one stop, arrows lead on
          found.forEach((each, place) => { each.dataset.stop = place; });
          return found.length;
        }"""
    )
    reached, unseen = set(), []
    for _ in range(expected + 100):
        page.keyboard.press("Tab")
        stop, style, width, tools = page.evaluate(
            """() => { const at = document.activeElement, style = getComputedStyle(at), bar = at.closest(".modebar");
              return [at.dataset.stop ?? at.tagName, style.outlineStyle, parseFloat(style.outlineWidth),
                bar && getComputedStyle(bar).opacity]; }"""
        )
        if stop == "BODY":  # once around
            break
        if stop.isdigit():
            reached.add(int(stop))
        if style == "none" or width < 1 or tools not in (None, "1"):
            unseen.append(stop)
    missed = [page.locator(f"[data-stop='{each}']").evaluate("each => each.outerHTML.slice(0, 120)")
              for each in sorted(set(range(expected)) - reached)]  # fmt: skip
    assert missed == [] and unseen == []


def test_a_screen_reader_finds_its_way(look: Look, report: Callable[[str], Path]) -> None:
    page = look(report("three")).page
    tree = page.locator("body").aria_snapshot()
    for role in ("banner", "navigation", "main", "status", "slider", "spinbutton", "combobox", "img", "table"):
        assert f"- {role}" in tree, role
    assert 'slider "string.accuracy"' in tree and 'region "The front"' in tree
    assert page.get_by_role("status").count() >= 1
    assert (
        page.get_by_role("slider", name="dates.error").or_(page.get_by_role("slider", name="sums.error")).count() == 1
    )


def test_without_scripts_the_tables_are_there(chromium: Browser, report: Callable[[str], Path]) -> None:
    context = chromium.new_context(java_script_enabled=False, viewport={"width": 390, "height": 844})
    try:
        page = context.new_page()
        page.goto(report("three").resolve().as_uri())
        notes = page.locator("noscript")  # which playwright's search for text leaves out
        assert [each.is_visible() for each in notes.all()] == [True, True]
        assert "The figures need JavaScript" in notes.nth(0).inner_text()
        assert "paretomerge choose" in notes.nth(1).inner_text()
        # nothing that would stay empty, or that does nothing
        assert page.locator(".plot:visible, input:visible, select:visible").count() == 0
        assert page.locator("table").count() >= 5
        page.locator("#the-front summary").first.click()  # opens without a script too
        assert page.locator("#the-front table").first.is_visible()
        assert "string.accuracy" in page.locator("#the-front table").first.inner_text()
        page.screenshot(path=Path(__file__).resolve().parents[2] / "test-artifacts" / "report-without-scripts.png")
    finally:
        context.close()


def test_paper_shows_every_table_and_light_figures(look: Look, report: Callable[[str], Path], tmp_path: Path) -> None:
    sight = look(report("three"), dark=True)
    page = sight.page
    page.pdf(path=tmp_path / "report.pdf", format="A4")
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")
    # browsers shrink what is wider than paper, to a half at most
    page.set_viewport_size({"width": 1000, "height": 1400})
    sight.until(AS_WIDE_AS_ITS_PLACE)
    page.emulate_media(media="print", color_scheme="dark")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    tables = page.locator("table:not(details.fill table)")
    hidden = [each.inner_html()[:80] for each in tables.all() if not each.is_visible()]
    assert hidden == [] and tables.count() >= 5
    cut = page.evaluate(
        "[...document.querySelectorAll('.tall')].filter(each => each.scrollHeight > each.clientHeight + 1).length"
    )
    assert cut == 0
    assert sight.overflow() <= 0
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    sight.keep("paper")
    assert sight.errors == []


def test_nothing_moves_for_who_asks_for_that(look: Look, report: Callable[[str], Path]) -> None:
    page = look(report("two")).page  # the fixture asks for reduced motion
    moving = page.evaluate(
        """[...document.querySelectorAll("*")].filter(each => !each.closest(".js-plotly-plot")).filter(each => {
          const style = getComputedStyle(each);
          return parseFloat(style.transitionDuration) > 0 || parseFloat(style.animationDuration) > 0;
        }).length"""
    )
    assert moving == 0 and page.evaluate("document.getAnimations().length") == 0


@pytest.fixture
def crowd(made: Callable[[str], Results], tmp_path: Path) -> Iterator[Path]:
    """The report of 5000 candidates with three objectives and a long front."""
    few, chance = made("three"), np.random.default_rng(0)
    scored = [each for each in few.candidates if each.state == "complete"]
    more, search = list(few.candidates), dict(few.scores["search"])
    for id in range(len(more), 5000):
        like = scored[id % len(scored)]
        more.append(replace(like, id=id, label=""))
        search[id] = {name: (float(chance.random() ** 0.5), 0.03) for name in search[like.id]}
    yield write_report(
        replace(few, candidates=tuple(more), scores={**few.scores, "search": search}), tmp_path / "r.html"
    )


def test_thousands_of_candidates_are_drawn(look: Look, crowd: Path) -> None:
    assert crowd.stat().st_size <= MOST_BYTES
    began = time.monotonic()
    sight = look(crowd, name="report-crowd")
    sight.page.wait_for_selector("#front-0 .main-svg")
    print(f"5000 candidates: {time.monotonic() - began:.1f} s from opening to the front; {crowd.stat().st_size} bytes")
    before = sight.page.inner_text("#mix-says")
    sight.page.focus("#mix-weight-0")
    sight.page.keyboard.press("End")
    assert sight.page.get_attribute("#mix-weight-0", "aria-valuetext") == "50 % of the mix"
    assert sight.page.inner_text("#mix-says").startswith("Candidate") and before.startswith("Candidate")
    assert sight.complaints() == []
    sight.keep()
