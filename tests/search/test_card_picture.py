"""The picture of a front: drawn for any run, small, and with the scores in the right places."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evaluators.contract import SPLITS, Metric, Split
from search.constraints import Constraint
from search.errors import SearchError
from search.report.facts import Facts
from search.report.label_boxes import places
from search.report.picture import LARGEST, _Painter, describe_picture, write_front_picture
from search.report.scene import Scene
from search.results import Results

SyntheticRun = Callable[..., Results]


@pytest.fixture(scope="module")
def run(synthetic_run: SyntheticRun, tmp_path_factory: pytest.TempPathFactory) -> Results:
    return synthetic_run(tmp_path_factory.mktemp("pictures") / "demo", candidates=24)


def place(results: Results, id: int, split: Split) -> tuple[float, float]:
    """Where a candidate stands."""
    values = results.values(id, split)
    return values["string.accuracy"], values["language.accuracy"]


def size(file: Path) -> tuple[int, int]:
    content = file.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n") and len(content) <= LARGEST
    width, height = struct.unpack(">II", content[16:24])
    return width, height


def drawn(results: Results, highlight: int | None = None) -> Any:
    """matplotlib's figure, to ask what is where."""
    from search.report.picture import _LIGHT

    return _Painter(Scene(Facts(results), highlight), _LIGHT).figure()


def points(axes: Any, marker: str) -> set[tuple[float, float]]:
    found = [line for line in axes.lines if line.get_marker() == marker]
    return {(float(x), float(y)) for line in found for x, y in zip(*line.get_data(), strict=True)}


def test_marks_stand_at_their_scores(run: Results) -> None:
    figure = drawn(run)
    (axes,) = figure.axes
    assert axes.get_xlabel().startswith("string.accuracy (higher is better)")
    assert points(axes, "*") == {place(run, run.knee(), "selection")}
    everything = {(float(x), float(y)) for line in axes.lines for x, y in zip(*line.get_data(), strict=True)}
    assert everything >= {place(run, id, "selection") for id in run.front}
    assert everything >= {place(run, id, "search") for id in run.scores["search"]}
    bars = [segment for each in axes.collections for segment in each.get_segments()]
    limits = run.interval(run.knee(), "selection", "string.accuracy")
    assert any(math.isclose(a[0], limits.low) and math.isclose(b[0], limits.high) for a, b in bars)


def test_another_candidate_can_have_the_star(run: Results) -> None:
    other = next(id for id in run.scores["search"] if id not in run.scores["selection"])
    (axes,) = drawn(run, other).axes
    assert points(axes, "*") == {place(run, other, "search")}
    assert f"exported merge ({other}, search scores)" in describe_picture(run, other)
    assert f"chosen merge ({run.chosen})" in describe_picture(run)
    with pytest.raises(SearchError, match="there is no candidate 99"):
        describe_picture(run, 99)


@pytest.mark.slow
@pytest.mark.parametrize("objectives", [1, *(pytest.param(number, marks=pytest.mark.slow) for number in (3, 4))])
def test_any_number_of_objectives(objectives: int, synthetic_run: SyntheticRun, tmp_path: Path) -> None:
    results = synthetic_run(tmp_path / "run", objectives=objectives, candidates=14)
    width, height = size(write_front_picture(results, tmp_path / "front.png", dark=objectives == 3))
    assert 600 <= width <= 2400 and 200 <= height <= 2400
    expected = math.comb(objectives, 2) or 1
    assert len([axes for axes in drawn(results).axes if axes.axison]) == expected


@pytest.mark.slow
def test_eight_objectives_and_thousands_of_candidates(run: Results, tmp_path: Path) -> None:
    targets = run.objectives.targets * 4
    results = run
    facts = Facts(results)
    facts.targets = targets  # the same two, four times: as many panels as there can be
    from search.report.picture import _LIGHT, _drawn

    scene = Scene(facts)
    scene.cloud = (scene.cloud * 5000)[:5000]
    content = _drawn(scene, _LIGHT)
    assert len(scene.cloud) == 5000 and len(content) <= LARGEST


@pytest.mark.slow
def test_constraints_directions_and_strange_names(synthetic_run: SyntheticRun, tmp_path: Path) -> None:
    metrics = [Metric("err$^2_", "minimize", 0.0, 100.0), Metric("acc", "maximize", 0.0, 1.0)]
    limits = [Constraint("language.acc", "at_least", 0.3, 0.9, 0.0, 1.0)]
    results = synthetic_run(tmp_path / "run", metrics=metrics, limits=limits, candidates=14)
    broken = {id for id, values in results.violations["search"].items() if sum(max(0.0, each) for each in values) > 0}
    assert broken
    figure = drawn(results)
    (axes,) = figure.axes
    names = results.objectives.names
    places = {tuple(results.values(id, "search")[name] for name in names) for id in broken}
    assert points(axes, "x") == places
    assert "lower is better" in axes.get_xlabel() and "err$^2_" in axes.get_xlabel()
    border = Scene(Facts(results)).border(*results.objectives.targets)
    assert border == sorted(border)
    size(write_front_picture(results, tmp_path / "front.png"))  # dollars are no formula


def test_a_few_broken_candidates_do_not_shrink_the_rest(run: Results) -> None:
    worst = next(id for id in run.scores["search"] if id not in run.scores["selection"])
    far = {worst: dict.fromkeys(run.objectives.names, (-1e6, 0.0))}
    results = replace(run, scores={**run.scores, "search": {**run.scores["search"], **far}})
    scene = Scene(Facts(results))
    assert all(low > -1.0 for low, _ in map(scene.range_of, scene.targets))
    assert scene.cloud_label.endswith("1 lie outside")


def test_what_cannot_be_drawn_is_said(run: Results, tmp_path: Path) -> None:
    with pytest.raises(SearchError, match=r"ends in \.png"):
        write_front_picture(run, tmp_path / "front.jpg")
    with pytest.raises(SearchError, match="the picture cannot be written"):
        write_front_picture(run, tmp_path / "none" / "front.png")
    failed = replace(run, chosen=None, finalists=(), scores={split: {} for split in SPLITS})
    with pytest.raises(SearchError, match="no candidate has scores yet"):
        write_front_picture(failed, tmp_path / "front.png")
    assert list(tmp_path.iterdir()) == []


def test_names_stand_where_nothing_else_does(run: Results) -> None:
    from matplotlib.text import Text

    figure = drawn(run)
    figure.draw_without_rendering()
    (axes,) = figure.axes
    renderer = figure.canvas.get_renderer()
    boxes = [Text.get_window_extent(text, renderer) for text in axes.texts]  # without their arrows
    assert len(boxes) == len([each for each in Scene(Facts(run)).marks if each.label])
    clashes = sum(one.overlaps(other) for at, one in enumerate(boxes) for other in boxes[:at])
    assert clashes == 0, [text.get_text() for text in axes.texts]
    assert all(box.gap(50.0, 50.0) > 0 for box in places(50.0, 50.0, 80.0, 12.0))
