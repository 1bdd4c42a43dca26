"""The report as a file, and the words and numbers it is made of."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from evaluators.contract import Metric
from search.errors import SearchError
from search.report.html import write_report
from search.report.markup import duration, element, listed, measured
from search.report.page import script_json
from search.results import Results

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>%{x}"
SyntheticRun = Callable[..., Results]


def test_a_report_that_cannot_be_written_is_one_paragraph_and_leaves_nothing(
    tmp_path: Path, synthetic_run: SyntheticRun
) -> None:
    results = synthetic_run(tmp_path / "run", candidates=12)
    with pytest.raises(SearchError, match="the report cannot be written"):
        write_report(results, tmp_path / "nowhere" / "report.html")
    (tmp_path / "taken").mkdir()
    with pytest.raises(SearchError, match="the report cannot be written"):
        write_report(results, tmp_path / "taken")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["holdouts.jsonl", "run", "taken"]


def test_the_same_run_gives_the_same_report(tmp_path: Path, synthetic_run: SyntheticRun) -> None:
    results = synthetic_run(tmp_path / "run", candidates=12)
    first = write_report(results, tmp_path / "a.html").read_bytes()
    assert write_report(Results.load(tmp_path / "run"), tmp_path / "b.html").read_bytes() == first


def test_json_between_script_tags() -> None:
    data = {"a": [EVIL, "\u2028", math.nan, math.inf, 1.5, None], "b": (True, "<!--")}
    text = script_json(data)
    assert not re.search(r"[<>&\u2028]", text)
    assert json.loads(text) == {"a": [EVIL, "\u2028", None, None, 1.5, None], "b": [True, "<!--"]}


def test_words() -> None:
    assert element("p", "<b>", title='"', hidden=True, lang=False) == '<p title="&quot;" hidden>&lt;b&gt;</p>'
    assert listed(["a"]) == "a" and listed(["a", "b"]) == "a and b" and listed(["a", "b", "c"]) == "a, b and c"
    assert [duration(each) for each in (0.0, 0.0123, 3.21, 59.4, 250, 11100)] == [
        "0.0 s", "12 ms", "3.2 s", "59 s", "4 min 10 s", "3 h 5 min",
    ]  # fmt: skip


def test_digits_follow_the_range(tmp_path: Path, synthetic_run: SyntheticRun) -> None:
    metrics = [Metric("share", "maximize", 0.0, 1.0), Metric("points", "maximize", 0.0, 100.0)]
    small, large = synthetic_run(tmp_path / "run", metrics=metrics, candidates=12).objectives.targets
    assert measured(small, (0.12345, 0.01)) == "0.123 ± 0.020"
    assert measured(large, (-12.345, 1.0)) == "−12.3 ± 2.0"
    assert measured(large, None) == "–"
