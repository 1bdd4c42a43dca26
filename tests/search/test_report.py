"""report.html: true to the numbers, one file, safe against what names and reasons may hold."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import math
import re
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from plotly.offline import get_plotlyjs
from report_pages import Page, page_of, page_with, shared_run

from evaluators.contract import SPLITS, Metric
from search.constraints import Constraint
from search.errors import SearchError
from search.report import html
from search.report.facts import Facts
from search.report.html import write_report
from search.report.mix import mix_section
from search.report.section import asset
from search.report.summary import summary
from search.results import Results

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>%{x}"
SyntheticRun = Callable[..., Results]


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
    results = shared_run(synthetic_run, tmp_path)
    path = write_report(results)
    assert path == results.folder / "report.html"
    text = path.read_text(encoding="utf-8")
    assert path.stat().st_size <= 6_000_000
    assert text.count(get_plotlyjs()) == 1
    page = Page(text)
    assert [each for tag, each in page.elements if tag == "main"] == [{"id": "report", "tabindex": "-1"}]
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
    results = synthetic_run(folder, metrics=metrics, failures=lambda id: EVIL if id == 12 else None, candidates=16)
    labelled = [replace(each, label=EVIL) if each.id == 13 else each for each in results.candidates]
    page = page_of(replace(results, candidates=tuple(labelled)))
    plain = page_of(shared_run(synthetic_run, tmp_path))
    tags = [tag for tag, _ in page.elements]
    assert tags.count("script") == [tag for tag, _ in plain.elements].count("script")
    assert not any(tag == "img" for tag, _ in page.elements)
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert folder.name in page.text and EVIL in page.text
    assert page.data["names"][0] == f"string.{EVIL}" and EVIL in page.data["columns"]["label"]
    # plotly reads tags in texts: they reach it escaped; a browser test points at the marks whose texts scripts make
    for figure in page.data["figures"]:
        assert "<script" not in json.dumps(figure) and "<img" not in json.dumps(figure)


def test_text_that_is_no_text_does_not_stop_the_report(tmp_path: Path, synthetic_run: SyntheticRun) -> None:
    results = synthetic_run(tmp_path / "run", failures=lambda id: "broken" if id == 12 else None, candidates=16)
    odd = [replace(each, reason="broken \ud800") if each.id == 12 else each for each in results.candidates]
    path = write_report(replace(results, candidates=tuple(odd)))
    assert "broken ?" in path.read_text(encoding="utf-8")


def test_no_path_of_the_machine(tmp_path: Path, synthetic_run: SyntheticRun) -> None:
    model = str((tmp_path / "run" / "models" / "string").absolute())
    results = synthetic_run(
        tmp_path / "run", failures=lambda id: f"{model}: broken" if id == 12 else None, candidates=16
    )
    page = page_of(results)
    assert str(tmp_path) not in page.text
    assert "failed: models/string: broken" not in page.text  # the alias's path is absolute: only its name is shown
    assert ["failed: …/string: broken", "1", "12"] in page.tables["What failed, and why"]
    assert f"paretomerge export run --candidate {results.chosen} --out run/export/{results.chosen}" in page.text


def test_folder_as_given_in_commands(
    tmp_path: Path, synthetic_run: SyntheticRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    results = synthetic_run(Path("runs/my run"), candidates=16)
    text = page_of(results).text
    number = results.chosen
    assert f"paretomerge export 'runs/my run' --candidate {number} --out 'runs/my run/export/{number}'" in text
    assert "paretomerge run CONFIG --name 'my run' --set search.budget.candidates=32" in text


# -- what it says ---------------------------------------------------------------------------------------------------


def test_chosen_and_baselines_on_every_split(tmp_path: Path, synthetic_run: SyntheticRun) -> None:
    results = shared_run(synthetic_run, tmp_path)
    rows = page_of(results).tables["Scores with 95 % intervals, by split"][2:]
    assert {int(row[0].rsplit(" ", 1)[1]) for row in rows} == {
        results.chosen, *(each.candidate for each in results.baselines)
    }  # fmt: skip
    for row in rows:
        id = int(row[0].rsplit(" ", 1)[1])
        for index, split in enumerate(("search", "selection", "holdout")):
            found = results.interval(id, split, "string.accuracy")  # type: ignore[arg-type]
            assert row[1 + index] == f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f})"


def test_the_claim_is_that_of_the_paired_tests(tmp_path: Path, synthetic_run: SyntheticRun) -> None:
    results = shared_run(synthetic_run, tmp_path)
    assert results.claims is not None and results.claims.best is not None
    best = results.claims.best
    text = "\n".join(summary(Facts(results)))
    assert f"The best baseline by selection scores is {best.baseline.label}" in text
    assert ("the chosen merge beats it" in text) == best.beaten
    assert ("does not beat it" in text) == (not best.beaten)
    rows = page_of(results).tables["The chosen merge against every baseline, on holdout"][1:]
    assert [row[0] for row in rows] == [each.baseline.label for each in results.claims.comparisons]


@pytest.mark.slow
def test_minimised_metrics_are_compared_in_their_own_direction(tmp_path: Path, synthetic_run: SyntheticRun) -> None:
    metrics = [Metric("error", "minimize", 0.0, 1.0), Metric("loss", "minimize", 0.0, 50.0, "bits")]
    results = synthetic_run(tmp_path / "run", metrics=metrics)
    known = {"base": (0.9, 45.0), "expert string": (0.1, 45.0), "expert language": (0.9, 5.0)}
    changed = planted(results, {**known, "chosen": (0.5, 15.0), best_single(results): (0.6, 20.0)})
    text = "\n".join(summary(Facts(changed)))
    assert "keeps 50 % of string's and 75 % of language's own skill" in text
    page = page_of(results)
    titles = [figure["layout"]["xaxis"]["title"]["text"] for figure in page.data["figures"][:1]]
    assert titles == ["string.error (lower is better)"]
    front = next(trace for trace in page.data["figures"][0]["traces"] if trace["mode"] == "lines+markers")
    assert front["line"]["shape"] == "hv"  # what a point dominates lies above and to the right of it


def test_an_objective_without_a_scale_is_reported_as_a_score(tmp_path: Path, synthetic_run: SyntheticRun) -> None:
    results = shared_run(synthetic_run, tmp_path)
    # an expert that is no better than the base
    values = {"base": (0.1, 0.5), "expert string": (0.9, 0.5), "expert language": (0.1, 0.5), "chosen": (0.5, 0.7)}
    text = "\n".join(summary(Facts(planted(results, values))))
    assert "keeps 50 % of string's own skill and scores 0.700 (0.680 to 0.720) in language.accuracy" in text


def test_an_unfinished_run_says_what_is_not_known(tmp_path: Path, synthetic_run: SyntheticRun) -> None:
    results = synthetic_run(tmp_path / "run", finished=False, candidates=24)
    assert results.state == "interrupted" and results.chosen is None
    page = page_of(results)
    assert (
        "Nothing has been chosen yet." in page.text and "Its selection and holdout scores are not known." in page.text
    )
    assert "On holdout" not in page.text and "Optimism of the chosen merge" not in page.tables
    assert any(each.endswith("kept: retention on search items") for each in page.tables)
    assert "No mix can be recommended yet" in page.text and "mix" not in page.data
    header = page.tables["Scores with 95 % intervals, by split"][1]
    assert header == ["search", "kept"] * 2
    assert "To go on:" in page.text and "search.budget.candidates=" not in page.text


def test_chosen_but_not_opened(tmp_path: Path, synthetic_run: SyntheticRun) -> None:
    results = shared_run(synthetic_run, tmp_path)
    text = page_of(replace(results, state="interrupted", scores={**results.scores, "holdout": {}})).text
    assert "It has no holdout score yet" in text and "On holdout" not in text


def test_a_run_in_which_everything_failed(tmp_path: Path, synthetic_run: SyntheticRun) -> None:
    results = synthetic_run(tmp_path / "run", failures=lambda id: "the loss is NaN", candidates=16)
    assert results.scores["search"] == {}
    page = Page(write_report(results).read_text(encoding="utf-8"))
    assert "could be scored: all failed" in page.text and "front" not in page.data
    failed = page.tables["What failed, and why"][1]
    assert failed[0] == "failed: the loss is NaN" and failed[2].startswith("0, 1, 2, ")


def test_a_run_that_has_scored_nothing_yet(tmp_path: Path, synthetic_run: SyntheticRun) -> None:
    run = synthetic_run(tmp_path / "run", candidates=12)
    results = replace(
        run, candidates=(), scores={each: {} for each in SPLITS}, chosen=None, finalists=(), state="running"
    )
    page = page_of(results)
    assert "No candidate has been scored yet." in page.text and "front" not in page.data


@pytest.mark.slow
def test_unknown_errors_and_a_missing_environment(tmp_path: Path, synthetic_run: SyntheticRun) -> None:
    results = synthetic_run(tmp_path / "run")
    (tmp_path / "run" / "environment.json").unlink()
    changed = planted(results, {"base": (0.1, 0.1), "chosen": (0.5, 0.5)}, error=math.inf)
    page = page_of(changed)
    assert "0.500 (0.000 to 1.000)" in page.text and "environment.json is missing" in page.text


def test_the_headline_claims_no_more_than_the_adjusted_tests(tmp_path: Path, synthetic_run: SyntheticRun) -> None:
    results = shared_run(synthetic_run, tmp_path)
    assert results.claims is not None
    comparisons = results.claims.comparisons
    beaten = sum(each.beaten for each in comparisons)
    said = summary(Facts(results))
    assert 0 < beaten < len(comparisons)
    assert said[0].startswith(f"Candidate {results.chosen} beats {beaten} of {len(comparisons)} baselines on holdout")
    for each in comparisons:
        assert (each.baseline.label.split(" = ")[0] in said[0].partition("not shown to beat")[2]) == (not each.beaten)
    for name in results.objectives.names:
        better = sum(each.p[name] <= 0.05 and each.objectives[name].difference > 0 for each in comparisons)
        of = "every baseline" if better == len(comparisons) else f"{better} of {len(comparisons)} baselines"
        assert (f"On {name} it is better than {of}" in said[1]) == (better > 0)


def test_constraints_and_cost_are_stated(tmp_path: Path, synthetic_run: SyntheticRun) -> None:
    limits = [Constraint("language.accuracy", "at_least", 0.3, 0.9, 0.0, 1.0)]
    results = synthetic_run(tmp_path / "run", limits=limits)
    facts = Facts(results)
    kept = [id for id in facts.scored if results.violations["search"][id][0] <= 0.0]
    assert 0 < len(kept) < len(facts.scored)
    text = "\n".join(summary(facts))
    assert f"{len(kept)} of {len(facts.scored)} scored candidates kept it on search items" in text
    broken = results.violations["holdout"][results.chosen][0] > 0.0
    assert ("on holdout it is not shown to keep language.accuracy >= 0.3" in text) == broken
    assert f"It cost {results.evaluations} evaluations of {len(results.candidates)} candidates" in text
    page = page_of(results)
    assert f"breaks a constraint ({len(facts.scored) - len(kept)})" in page.text
    columns = page.data["columns"]
    assert [id for id, broken in zip(columns["id"], columns["broken"], strict=True) if not broken] == kept


def test_a_section_that_cannot_be_made_does_not_lose_the_others(
    tmp_path: Path, synthetic_run: SyntheticRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = replace(shared_run(synthetic_run, tmp_path))

    def broken(facts: Facts) -> None:
        raise SearchError(f"{results.folder.absolute()}/run.db: <b>is damaged</b>")

    others = [each for each in html.SECTIONS if each[0] != "Failures"]
    monkeypatch.setattr(html, "SECTIONS", [("Failures", broken), *others])
    page = page_of(results)
    assert "This part cannot be shown. run/run.db: <b>is damaged</b>" in page.text
    assert str(results.folder.absolute()) not in page.text and "front" in page.data
    monkeypatch.setattr(html, "summary", broken)
    assert page_of(results).text.count("<b>is damaged</b>") == 2


def test_lost_items_are_said_where_they_are_missed(tmp_path: Path, synthetic_run: SyntheticRun) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(shared_run(synthetic_run, tmp_path).folder, folder)
    results = Results.load(folder)
    lost = next(id for id in results.finalists if id != results.chosen)
    with contextlib.closing(sqlite3.connect(folder / "run.db")) as database:
        database.execute("delete from item_scores where candidate = ? and split = 'selection'", (lost,))
        database.commit()
    text = page_of(Results.load(folder)).text
    assert f"What may be claimed of candidate {results.chosen} cannot be worked out" in text
    assert f"item scores of candidate {lost} on the selection split" in text
    assert f"On holdout, items that no choice was made on, the chosen merge, candidate {results.chosen}, keeps" in text
    mix = page_with(Results.load(folder), mix_section).data["mix"]
    row = mix["ids"].index(lost)
    assert [each["bounds"]["0.9"][row] for each in mix["metrics"]] == [None, None]  # no bound is shown to be kept


def test_a_mistake_of_ours_is_not_swallowed(
    tmp_path: Path, synthetic_run: SyntheticRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(facts: Facts) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(html, "SECTIONS", [("Failures", broken)])
    with pytest.raises(ZeroDivisionError):
        html.render(shared_run(synthetic_run, tmp_path))


# -- accessible -----------------------------------------------------------------------------------------------------


def test_everything_has_a_name_and_a_place(tmp_path: Path, synthetic_run: SyntheticRun) -> None:
    page = page_of(shared_run(synthetic_run, tmp_path))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in page.elements:
        if tag == "a":
            assert str(attributes["href"]).removeprefix("#") in ids
        if tag == "label" and "for" in attributes:
            assert attributes["for"] in ids
        if attributes.get("class") == "plot":
            assert attributes["role"] == "img" and attributes["aria-label"]
        if tag == "section":
            assert attributes["aria-labelledby"] in ids
        if tag == "input" and attributes["type"] != "radio":
            assert any(each.get("for") == attributes["id"] for name, each in page.elements if name == "label")
    tags = [tag for tag, _ in page.elements]
    assert tags.count("h1") == tags.count("main") == tags.count("header") == tags.count("nav") == 1
    assert tags.count("figcaption") == tags.count("figure") > 2
    assert all(caption for caption in page.tables)


def test_text_stands_out_from_its_ground_in_both_schemes(tmp_path: Path, synthetic_run: SyntheticRun) -> None:
    style = asset("report.css")
    light = dict(re.findall(r"(--[\w-]+): (#[0-9a-f]{6})", style[: style.index("@media")]))
    after = style[style.index("@media") :]
    dark = dict(re.findall(r"(--[\w-]+): (#[0-9a-f]{6})", after[: after.index("* {")]))
    assert light.keys() == dark.keys()
    for scheme in (light, dark):
        for ground in ("--paper", "--card"):
            for ink in ("--ink", "--muted", "--front", "--chosen", "--reference", "--baseline", "--recommended"):
                assert contrast(scheme[ink], scheme[ground]) >= 4.5, (ink, ground, scheme[ink], scheme[ground])
            assert contrast(scheme["--faint"], scheme[ground]) >= 3.0  # borders of fields, dots


def contrast(one: str, other: str) -> float:
    """WCAG 2.2's contrast ratio of two colours, ``#rrggbb``."""

    def luminance(colour: str) -> float:
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    bright, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (low + 0.05)
