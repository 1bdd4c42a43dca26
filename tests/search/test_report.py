"""report.html: true to the numbers, one file, safe against what names and reasons may hold."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from plotly.offline import get_plotlyjs

from evaluators.contract import SPLITS, Metric
from search.report.facts import Facts
from search.report.html import render, write_report
from search.report.summary import summary
from search.results import Results

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>%{x}"
SyntheticRun = Callable[..., Results]


class Page(HTMLParser):
    """The elements, scripts, visible text and tables of a page."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.styles, self.text = "", ""
        self._open: list[str] = []
        self._rows: list[list[str]] = []
        self._caption = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag in ("meta", "link"):
            return
        self._open.append(tag)
        if tag == "script":
            self.scripts.append((dict(attrs), ""))
        elif tag == "table":
            self._rows, self._caption = [], ""
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("th", "td"):
            self._rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag  # what is opened is closed, in order
        if tag == "table":
            self.tables[self._caption] = self._rows

    def handle_data(self, data: str) -> None:
        inside = self._open[-1] if self._open else ""
        if inside == "script":
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
        elif inside == "style":
            self.styles += data
        else:
            self.text += data
            if inside == "caption":
                self._caption += data
            elif "th" in self._open or "td" in self._open:
                self._rows[-1][-1] += data

    @property
    def data(self) -> dict[str, Any]:
        found = [text for attributes, text in self.scripts if attributes.get("id") == "report-data"]
        return dict(json.loads(found[0]))


def resolved(page: Page) -> list[dict[str, Any]]:
    """The figures with columns and colours filled in, as the page's script does."""
    columns = page.data["columns"]
    columns["hover"] = [f"candidate {id}" for id in columns["id"]]
    columns["spread"] = [0.0] * len(columns["id"])

    def fill(value: Any) -> Any:
        if isinstance(value, list):
            return [fill(each) for each in value]
        if not isinstance(value, dict):
            return value
        if "css" in value:
            assert f"{value['css']}:" in page.styles
            return "#123456"
        if "says" in value:
            return [page.data["says"][str(id)] for id in value["says"]]
        if "column" in value:
            return columns[value["column"]][:: value.get("every", 1)]
        return {key: fill(each) for key, each in value.items()}

    return [fill(each) for each in page.data["figures"]]


def planted(results: Results, values: dict[str, tuple[float, ...]], error: float = 0.01) -> Results:
    """The same run with other holdout scores: "chosen" or a baseline's label -> one value per objective."""
    names = results.objectives.names
    ids = {each.label: each.candidate for each in results.baselines} | {"chosen": results.chosen}
    scores = {
        ids[label]: {name: (value, error) for name, value in zip(names, each, strict=True)}
        for label, each in values.items()
    }
    return replace(results, scores={**results.scores, "holdout": scores})  # type: ignore[dict-item]


def best_single(results: Results) -> str:
    return next(each.label for each in results.baselines if each.label.startswith("best single"))


# -- one file, offline ----------------------------------------------------------------------------------------------


def test_one_file_that_asks_the_network_for_nothing(tmp_path: Path, synthetic_run: SyntheticRun) -> None:
    results = synthetic_run(tmp_path / "run")
    path = write_report(results)
    assert path == tmp_path / "run" / "report.html"
    text = path.read_text(encoding="utf-8")
    assert path.stat().st_size <= 6_000_000
    assert text.count(get_plotlyjs()) == 1
    page = Page(text)
    for tag, attributes in page.elements:
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            assert (attributes.get(name) or "data:").startswith(("data:", "#")), (tag, attributes)
    assert "url(" not in page.styles and "@import" not in page.styles
    policy = next(each["content"] for _, each in page.elements if each.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and policy.startswith("default-src 'none'")
    executable = [code for attributes, code in page.scripts if "type" not in attributes]
    assert len(executable) >= 2 and executable[0] == get_plotlyjs()
    for code in executable:
        digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    assert "script-src 'unsafe-inline'" not in policy
    # plotly's own way to upload a chart is switched off
    assert "showSendToCloud: false" in executable[1] and 'plotlyServerURL: ""' in executable[1]


def test_hostile_names_stay_text(tmp_path: Path, synthetic_run: SyntheticRun) -> None:
    metrics = [Metric(EVIL, "maximize", 0.0, 1.0, EVIL), Metric("b", "maximize", 0.0, 1.0)]
    folder = tmp_path / "<img src=x onerror=alert(3)>&\"'"
    results = synthetic_run(folder, metrics=metrics, failures=lambda id: EVIL if id == 12 else None)
    labelled = [replace(each, label=EVIL) if each.id == 13 else each for each in results.candidates]
    page = Page(render(replace(results, candidates=tuple(labelled))))
    plain = Page(render(synthetic_run(tmp_path / "plain")))
    tags = [tag for tag, _ in page.elements]
    assert tags.count("script") == [tag for tag, _ in plain.elements].count("script")
    assert not any(tag == "img" for tag, _ in page.elements)
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert folder.name in page.text and EVIL in page.text
    assert page.data["names"][0] == f"string.{EVIL}" and EVIL in page.data["columns"]["label"]
    # plotly reads tags in texts: they reach it escaped
    for figure in page.data["figures"]:
        assert "<script" not in json.dumps(figure) and "<img" not in json.dumps(figure)
    assert page.data["says"] and not any("<script" in each or "<img" in each for each in page.data["says"].values())


def test_text_that_is_no_text_does_not_stop_the_report(tmp_path: Path, synthetic_run: SyntheticRun) -> None:
    results = synthetic_run(tmp_path / "run", failures=lambda id: "broken" if id == 12 else None)
    odd = [replace(each, reason="broken \ud800") if each.id == 12 else each for each in results.candidates]
    path = write_report(replace(results, candidates=tuple(odd)))
    assert "broken ?" in path.read_text(encoding="utf-8")


def test_no_path_of_the_machine(tmp_path: Path, synthetic_run: SyntheticRun) -> None:
    model = str((tmp_path / "run" / "models" / "string").absolute())
    results = synthetic_run(tmp_path / "run", failures=lambda id: f"{model}: broken" if id == 12 else None)
    page = Page(render(results))
    assert str(tmp_path) not in page.text
    assert "failed: models/string: broken" not in page.text  # the alias's path is absolute: only its name is shown
    assert ["failed: …/string: broken", "1", "12"] in page.tables["What failed, and why"]
    assert f"paretomerge export run --candidate {results.chosen} --out run/export/{results.chosen}" in page.text


def test_folder_as_given_in_commands(
    tmp_path: Path, synthetic_run: SyntheticRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    results = synthetic_run(Path("runs/my run"))
    text = Page(render(results)).text
    number = results.chosen
    assert f"paretomerge export 'runs/my run' --candidate {number} --out 'runs/my run/export/{number}'" in text
    assert "paretomerge run CONFIG --name 'my run' --set search.budget.candidates=80" in text


# -- what it says ---------------------------------------------------------------------------------------------------


def test_every_member_of_the_front_with_its_scores(tmp_path: Path, synthetic_run: SyntheticRun) -> None:
    results = synthetic_run(tmp_path / "run", candidates=60)
    page = Page(render(results))
    rows = page.tables["The front by selection scores; kept: retention on selection items"][2:]
    assert [int(row[0].split()[0]) for row in rows] == results.front
    for id, row in zip(results.front, rows, strict=True):
        assert row[1] == results.candidate(id).recipe_hash[:12]
        expected = [results.scores[split][id][name][0] for name in results.objectives.names
                    for split in ("search", "selection")]  # fmt: skip
        shown = [float(cell.split()[0].replace("−", "-")) for cell in row[2:] if "±" in cell]
        assert shown == pytest.approx(expected, abs=5.1e-4)
        retention = results.judge.retention(results.scores["selection"], id)
        kept = [int(cell.split()[0].replace("−", "-")) for cell in row[2:] if "%" in cell]
        assert kept == [round(100 * each) for each in retention]


def test_chosen_and_baselines_on_every_split(tmp_path: Path, synthetic_run: SyntheticRun) -> None:
    results = synthetic_run(tmp_path / "run")
    rows = Page(render(results)).tables["Scores with half-widths of 95 % intervals, by split"][2:]
    assert {int(row[0].rsplit(" ", 1)[1]) for row in rows} == {
        results.chosen, *(each.candidate for each in results.baselines)
    }  # fmt: skip
    for row in rows:
        id = int(row[0].rsplit(" ", 1)[1])
        for index, split in enumerate(("search", "selection", "holdout")):
            value, error = results.scores[split][id]["string.accuracy"]  # type: ignore[index]
            assert row[1 + index] == f"{value:.3f} ± {1.959964 * error:.3f}"


def test_the_claim_is_that_of_the_paired_tests(tmp_path: Path, synthetic_run: SyntheticRun) -> None:
    results = synthetic_run(tmp_path / "run", candidates=60)
    assert results.claims is not None and results.claims.best is not None
    best = results.claims.best
    text = "\n".join(summary(Facts(results)))
    assert f"The best baseline by selection scores is {best.baseline.label}" in text
    assert ("the chosen merge beats it" in text) == best.beaten
    assert ("does not beat it" in text) == (not best.beaten)
    rows = Page(render(results)).tables["The chosen merge against every baseline, on holdout"][1:]
    assert [row[0] for row in rows] == [each.baseline.label for each in results.claims.comparisons]


def test_minimised_metrics_are_compared_in_their_own_direction(tmp_path: Path, synthetic_run: SyntheticRun) -> None:
    metrics = [Metric("error", "minimize", 0.0, 1.0), Metric("loss", "minimize", 0.0, 50.0, "bits")]
    results = synthetic_run(tmp_path / "run", metrics=metrics)
    known = {"base": (0.9, 45.0), "expert string": (0.1, 45.0), "expert language": (0.9, 5.0)}
    changed = planted(results, {**known, "chosen": (0.5, 15.0), best_single(results): (0.6, 20.0)})
    text = "\n".join(summary(Facts(changed)))
    assert "keeps 50 % of string's and 75 % of language's own skill" in text
    page = Page(render(results))
    titles = [figure["layout"]["xaxis"]["title"]["text"] for figure in page.data["figures"][:1]]
    assert titles == ["string.error (lower is better)"]
    front = next(trace for trace in page.data["figures"][0]["traces"] if trace["mode"] == "lines+markers")
    assert front["line"]["shape"] == "hv"  # what a point dominates lies above and to the right of it


def test_an_objective_without_a_scale_is_reported_as_a_score(tmp_path: Path, synthetic_run: SyntheticRun) -> None:
    results = synthetic_run(tmp_path / "run")
    # an expert that is no better than the base
    values = {"base": (0.1, 0.5), "expert string": (0.9, 0.5), "expert language": (0.1, 0.5), "chosen": (0.5, 0.7)}
    text = "\n".join(summary(Facts(planted(results, values))))
    assert "keeps 50 % of string's own skill and scores 0.700 ± 0.020 in language.accuracy" in text


def test_an_unfinished_run_says_what_is_not_known(tmp_path: Path, synthetic_run: SyntheticRun) -> None:
    results = synthetic_run(tmp_path / "run", finished=False)
    assert results.state == "interrupted" and results.chosen is None
    page = Page(render(results))
    assert (
        "Nothing has been chosen yet." in page.text and "Its selection and holdout scores are not known." in page.text
    )
    assert "On holdout" not in page.text and "Optimism of the chosen merge" not in page.tables
    assert "The front by search scores; kept: retention on search items" in page.tables
    header = page.tables["Scores with half-widths of 95 % intervals, by split"][1]
    assert header == ["search", "kept"] * 2
    assert "To go on:" in page.text and "search.budget.candidates=" not in page.text


def test_chosen_but_not_opened(tmp_path: Path, synthetic_run: SyntheticRun) -> None:
    results = synthetic_run(tmp_path / "run")
    text = Page(render(replace(results, state="interrupted", scores={**results.scores, "holdout": {}}))).text
    assert "It has no holdout score yet" in text and "On holdout" not in text


def test_a_run_in_which_everything_failed(tmp_path: Path, synthetic_run: SyntheticRun) -> None:
    results = synthetic_run(tmp_path / "run", failures=lambda id: "the loss is NaN")
    assert results.scores["search"] == {}
    page = Page(write_report(results).read_text(encoding="utf-8"))
    assert "could be scored: all failed" in page.text and not any(each["id"].startswith("front") for each in page.data["figures"])
    failed = page.tables["What failed, and why"][1]
    assert failed[0] == "failed: the loss is NaN" and failed[2].startswith("0, 1, 2, ")


def test_a_run_that_has_scored_nothing_yet(tmp_path: Path, synthetic_run: SyntheticRun) -> None:
    run = synthetic_run(tmp_path / "run", candidates=12)
    results = replace(
        run, candidates=(), scores={each: {} for each in SPLITS}, chosen=None, finalists=(), state="running"
    )
    page = Page(render(results))
    assert "No candidate has been scored yet." in page.text and not any(each["id"].startswith("front") for each in page.data["figures"])


def test_a_recipe_that_this_version_decodes_differently_is_not_drawn(
    tmp_path: Path, synthetic_run: SyntheticRun
) -> None:
    results = synthetic_run(tmp_path / "run")
    changed = [
        replace(each, recipe_hash="0" * 64) if each.id == results.chosen else each for each in results.candidates
    ]
    page = Page(render(replace(results, candidates=tuple(changed))))
    assert "was scored as recipe 000000000000" in page.text
    assert not any(figure["id"].startswith("coefficients") for figure in page.data["figures"])


def test_unknown_errors_and_a_missing_environment(tmp_path: Path, synthetic_run: SyntheticRun) -> None:
    results = synthetic_run(tmp_path / "run")
    (tmp_path / "run" / "environment.json").unlink()
    changed = planted(results, {"base": (0.1, 0.1), "chosen": (0.5, 0.5)}, error=math.inf)
    page = Page(render(changed))
    assert "0.500 ± unknown" in page.text and "environment.json is missing" in page.text


# -- figures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("objectives", "pairs"), [(1, 1), (2, 1), (3, 3)])
def test_figures_are_valid_and_described(
    tmp_path: Path, synthetic_run: SyntheticRun, objectives: int, pairs: int
) -> None:
    import plotly.graph_objects as go

    results = synthetic_run(tmp_path / "run", objectives=objectives, candidates=30)
    page = Page(render(results))
    figures = resolved(page)
    for figure in figures:
        go.Figure(data=figure["traces"], layout=figure["layout"])  # refuses unknown properties and values
    assert sum(figure["id"].startswith("front-") for figure in figures) == pairs
    places = {each["id"]: each for tag, each in page.elements if each.get("class") == "plot"}
    assert set(places) == {figure["id"] for figure in figures}
    assert all(each["role"] == "img" and each["aria-label"] for each in places.values())
    tags = [tag for tag, _ in page.elements]
    assert tags.count("figcaption") == tags.count("figure") == 3
    assert "The front and the named candidates, with 95 % intervals" in page.tables


def test_the_front_figure_shows_selection_scores_with_bars(tmp_path: Path, synthetic_run: SyntheticRun) -> None:
    results = synthetic_run(tmp_path / "run", candidates=60)
    page = Page(render(results))
    traces = resolved(page)[0]["traces"]
    cloud, front = traces[0], traces[1]
    assert len(cloud["x"]) == sum(each.state == "complete" for each in results.candidates)
    shown = {(x, y): (ex, ey) for x, y, ex, ey in zip(
        front["x"], front["y"], front["error_x"]["array"], front["error_y"]["array"], strict=True
    )}  # fmt: skip
    for id in results.front:
        (x, ex), (y, ey) = (results.scores["selection"][id][name] for name in results.objectives.names)
        assert shown[float(f"{x:.6g}"), float(f"{y:.6g}")] == pytest.approx((1.959964 * ex, 1.959964 * ey), rel=1e-5)
    assert front["x"] == sorted(front["x"])
    assert f"★ chosen merge · candidate {results.chosen}" in page.text


# -- writing --------------------------------------------------------------------------------------------------------
