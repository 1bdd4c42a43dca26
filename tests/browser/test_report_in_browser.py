"""The report in a real browser: it asks for nothing, it fits, its sliders choose as `choose` does, and it can be used
without a mouse."""

from __future__ import annotations

import importlib.util
import json
import random
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from evaluators.contract import Metric
from search.choice import Wish, choose
from search.errors import NothingFeasible
from search.report.html import write_report
from search.results import Results

pytestmark = pytest.mark.slow

Look = Callable[..., Any]
EVIL = "</script><img src=x onerror=alert(1)>"
SEARCH = Path(__file__).resolve().parents[1] / "search" / "conftest.py"
EIGHT = ("string", "language", "sums", "dates", "logic", "code", "poems", "facts")


@pytest.fixture(scope="module")
def runs() -> ModuleType:
    """The factory of runs that the tests of search use."""
    spec = importlib.util.spec_from_file_location("runs_of_search", SEARCH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def build(runs: ModuleType) -> Callable[..., Results]:
    return runs.synthetic_run._get_wrapped_function()()  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, build: Callable[..., Results]) -> Results:
    metrics = [Metric("accuracy", "maximize", 0.0, 1.0)] * 2 + [Metric("error", "minimize", 0.0, 1.0)]
    folder = tmp_path_factory.mktemp("runs") / "three"
    return build(
        folder, metrics=metrics, candidates=60, search={"finalists": 16}, failures=lambda id: EVIL if id == 30 else None
    )


@pytest.fixture(scope="module")
def report(results: Results) -> Path:
    labelled = [replace(each, label=EVIL) if each.id == 31 else each for each in results.candidates]
    return write_report(replace(results, candidates=tuple(labelled)))


@pytest.fixture
def sight(look: Look, report: Path) -> Iterator[Any]:
    found = look(report)
    yield found
    assert found.errors == [] and found.requests == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", ["phone", "desktop"])
def test_it_fits_and_asks_for_nothing(look: Look, report: Path, width: str, dark: bool) -> None:
    sight = look(report, width=width, dark=dark)
    page = sight.page
    page.wait_for_selector("#front-0 .main-svg")
    assert page.locator(".plot:visible").count() == page.locator(".plot:visible:has(.main-svg)").count() > 5
    for each in page.locator("details").all():
        each.evaluate("each => { each.open = true; }")
    sight.keep()
    assert sight.overflow() <= 0
    assert sight.errors == [] and sight.requests == []


def test_the_slider_moves_the_recommendation_by_keyboard_alone(sight: Any, results: Results) -> None:
    page = sight.page
    ring = "JSON.stringify(document.getElementById('front-0').layout.shapes[0])"
    assert f"Candidate {results.chosen}, the run’s own choice" in page.inner_text("#mix-says")
    before = json.loads(page.evaluate(ring))
    page.focus("#mix-weight-0")
    page.keyboard.press("End")
    page.focus("#mix-weight-1")
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    weights = [int(page.input_value(f"#mix-weight-{index}")) for index in range(3)]
    assert weights == [100, 1, 50]
    expected = choose(results, Wish(dict(zip(results.objectives.names, map(float, weights), strict=True))))
    assert expected != results.chosen
    assert page.inner_text("#mix-says").startswith(f"Candidate {expected}")
    after = json.loads(page.evaluate(ring))
    assert after["xanchor"] != before["xanchor"]
    assert after["xanchor"] == pytest.approx(results.values(expected, "selection")["string.accuracy"], abs=1e-5)
    assert page.get_attribute("#mix-weight-0", "aria-valuetext") == "66 % of the mix"
    page.click("#mix-equal")
    assert page.inner_text("#mix-says").startswith(f"Candidate {results.chosen}, the run’s own choice")


def test_the_commands_lead_to_what_is_shown(sight: Any, results: Results) -> None:
    page = sight.page
    page.fill("#mix-weight-0", "90")
    page.fill("#mix-weight-2", "15")
    page.fill("#mix-bound-1", "0.3")
    page.select_option("#mix-confidence", "0.95")
    chosen, exported = (shlex.split(each) for each in page.inner_text("#mix-commands").splitlines())
    assert chosen[:3] == ["paretomerge", "choose", "three"]
    options = dict(zip(chosen[3::2], chosen[4::2], strict=True))
    assert options.keys() == {"--mix", "--at-least", "--confidence"}
    wish = Wish.parse(options["--mix"], [options["--at-least"]], None, float(options["--confidence"]))
    id = choose(results, wish)
    assert page.inner_text("#mix-says").startswith(f"Candidate {id}")
    assert exported == ["paretomerge", "export", "three", "--candidate", str(id), "--out", f"three/export/{id}"]
    page.fill("#mix-bound-1", "0.999")
    assert "None of" in page.inner_text("#mix-says") and not page.is_visible("#mix-commands")
    page.fill("#mix-bound-1", "7")
    assert "take a value there" in page.inner_text("#mix-says")
    assert page.get_attribute("#mix-bound-1", "aria-invalid") == "true"


@pytest.mark.parametrize("objectives", [2, 3, 8])
def test_the_page_chooses_as_the_command_does(
    objectives: int,
    look: Look,
    runs: ModuleType,
    build: Callable[..., Results],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runs, "SKILLS", EIGHT)
    # few items: many equal scores, so that ties are decided too
    monkeypatch.setattr(runs, "ITEMS", {"search": 40, "selection": 30, "holdout": 40})
    metrics = [Metric("error" if index % 3 == 2 else "accuracy", "minimize" if index % 3 == 2 else "maximize", 0.0, 1.0)
               for index in range(objectives)]  # fmt: skip
    found = build(tmp_path / "run", metrics=metrics, candidates=80, search={"finalists": 30})
    sight = look(write_report(found))
    names = found.objectives.names
    chance = random.Random(objectives)
    cases: list[tuple[list[int] | None, dict[str, float], str]] = [(None, {}, "0.9")]
    for _ in range(150):
        weights = [chance.choice([0, 0, 1, 7, 33, 50, 50, 66, 100]) for _ in names]
        bounds = {name: chance.choice([0.2, 0.4, 0.5, 0.6, 0.8]) for name in names if chance.random() < 0.15}
        if any(weights):
            cases.append((weights, bounds, chance.choice(["0.5", "0.9", "0.95"])))
    shown = sight.page.evaluate(
        "cases => cases.map(([weights, bounds, sure]) => report.choose(weights, bounds, sure))", cases
    )
    expected = [decided(found, *case) for case in cases]
    assert shown == expected
    assert len(set(expected)) > 3 and (None in expected or objectives == 2)
    assert sight.errors == []


def decided(results: Results, weights: list[int] | None, bounds: dict[str, float], confidence: str) -> int | None:
    mix = {} if weights is None else dict(zip(results.objectives.names, map(float, weights), strict=True))
    try:
        return choose(results, Wish(mix, bounds, None, float(confidence)))
    except NothingFeasible:
        return None


def test_pointing_at_a_mark_tells_its_scores_and_recipe(sight: Any, results: Results) -> None:
    page = sight.page
    mark = page.evaluate(
        """id => {
          const box = document.getElementById("front-0");
          box.scrollIntoView({ block: "center" });
          const { x, y } = report.data.front.places[id].selection.scores.reduce((at, [value], axis) =>
            axis > 1 ? at : { ...at, [axis ? "y" : "x"]: value }, {});
          const { xaxis, yaxis } = box._fullLayout, frame = box.getBoundingClientRect();
          return [frame.left + xaxis._offset + xaxis.d2p(x), frame.top + yaxis._offset + yaxis.d2p(y)];
        }""",
        results.chosen,
    )
    page.mouse.move(*mark)
    page.wait_for_selector("#front-0 .hoverlayer .hovertext")
    said = page.text_content("#front-0 .hoverlayer .hovertext")
    interval = results.interval(results.chosen or 0, "selection", "string.accuracy")
    assert f"candidate {results.chosen}" in said and "selection scores" in said
    assert f"string.accuracy {interval.value:.3f} ({interval.low:.3f} to {interval.high:.3f})" in said
    assert "task_arithmetic" in said and "coefficients: string" in said
    page.mouse.click(*mark)
    assert page.inner_text("#candidate-panel").startswith(f"candidate {results.chosen}")


def test_a_candidate_is_selected_everywhere_with_the_enter_key(sight: Any, results: Results) -> None:
    page = sight.page
    other = next(id for id in results.front if id != results.chosen)
    page.evaluate("document.addEventListener('candidate', event => { window.heard = event.detail; })")
    page.locator("#the-front summary").first.focus()
    page.keyboard.press("Enter")
    button = page.locator(f"#the-front button[data-candidate='{other}']").first
    button.focus()
    page.keyboard.press("Enter")
    assert page.evaluate("window.heard") == other == page.evaluate("report.selected")
    row = page.locator("#the-front tr[aria-current]").first
    assert row.inner_text().startswith(str(other))
    said = page.inner_text("#candidate-panel")
    assert said.startswith(f"candidate {other}") and "selection: string.accuracy" in said and "coefficients" in said
    rings = page.evaluate("document.getElementById('front-0').layout.shapes.length")
    assert rings == 2
    assert f"candidate {other}" in page.inner_text("#layers-says")


def test_the_holdout_view_shows_what_was_opened(sight: Any, results: Results) -> None:
    page = sight.page
    seen = """() => document.getElementById("front-0").data.filter(each => each.visible !== false && each.customdata)
      .flatMap(each => each.customdata)"""
    assert set(page.evaluate(seen)) > set(results.front)
    page.check("input[value=holdout]")
    assert set(page.evaluate(seen)) == set(results.scores["holdout"])
    assert set(results.front) - set(results.scores["holdout"])
    page.check("input[value=selection]")
    assert set(page.evaluate(seen)) > set(results.front)


def test_all_candidates_are_in_a_table_on_demand(sight: Any, results: Results) -> None:
    page = sight.page
    page.locator("#the-front summary").first.click()
    page.locator("details.fill > summary").click()
    rows = page.locator("#all-candidates tbody tr").all_inner_texts()
    assert len(rows) == sum(each.state == "complete" for each in results.candidates)
    interval = results.interval(0, "search", "string.accuracy")
    assert f"{interval.value:.3f} ({interval.low:.3f} to {interval.high:.3f})" in rows[0]
    assert any(EVIL in each for each in rows)  # as text; an alert or an image would be an error or a request


def test_figures_follow_the_reader_s_scheme_and_paper_is_light(sight: Any) -> None:
    page = sight.page
    colour = "() => document.getElementById('front-0')._fullLayout.font.color"
    light = page.evaluate(colour)
    page.emulate_media(color_scheme="dark")
    sight.until(f"({colour})() !== {json.dumps(light)}")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate(colour) == light
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.evaluate(colour) != light


def test_the_keyboard_reaches_the_skip_link_first_and_every_control(sight: Any) -> None:
    page = sight.page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    assert page.locator(".skip").bounding_box()["x"] >= 0
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "report"
    reached = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id"))
    assert {"mix-weight-0", "mix-weight-2", "mix-equal", "mix-bound-0", "mix-confidence", "mix-commands"} <= reached
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"


def test_many_objectives_are_shown_a_pair_at_a_time(
    look: Look, runs: ModuleType, build: Callable[..., Results], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "SKILLS", EIGHT)
    found = build(tmp_path / "run", objectives=5, candidates=24)
    sight = look(write_report(found))
    page = sight.page
    assert page.locator("#the-front .plot:visible").count() == 2  # the lines, and one pair
    page.select_option("#front-pair", label="logic.accuracy against dates.accuracy")
    shown = page.locator("#the-front .plot:visible").nth(1)
    assert "logic.accuracy against dates.accuracy" in shown.get_attribute("aria-label")
    assert shown.locator(".main-svg").count() > 0
    sight.keep()
    assert sight.errors == [] and sight.overflow() <= 0


@pytest.mark.parametrize("settings", [{"finished": False}, {"objectives": 1}, {"failures": lambda id: "NaN"}],
                         ids=["unfinished", "one objective", "all failed"])  # fmt: skip
def test_other_runs_show_without_an_error(
    look: Look, build: Callable[..., Results], tmp_path: Path, settings: dict[str, Any]
) -> None:
    sight = look(write_report(build(tmp_path / "run", candidates=24, **settings)))
    sight.keep()
    assert sight.errors == [] and sight.requests == [] and sight.overflow() <= 0
