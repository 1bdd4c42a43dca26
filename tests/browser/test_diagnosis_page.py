"""The page of a diagnosis in a real browser: drawn, offline, readable on a phone and in the dark."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from search.cli import run_command
from search.diagnosis.page import MOST_BYTES

pytestmark = pytest.mark.slow

Look = Callable[..., Any]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, nano_zoo: Path) -> dict[str, Path]:
    """The page and the JSON of a diagnosis with curves, of trained models."""
    folder = tmp_path_factory.mktemp("diagnosis")
    page, models = folder / "page.html", [str(nano_zoo / name) for name in ("base", "string", "language", "math")]
    data = [f"--data={name}={nano_zoo / 'data' / name / 'search.jsonl'}" for name in ("string", "language")]
    options = ["--curves", "all", "--items", "4", "--html", str(page)]
    assert run_command(["diagnose", *models, *data, *options]) == 0
    return {"page": page}


@pytest.fixture(
    params=[("phone", False), ("phone", True), ("desktop", False), ("desktop", True)],
    ids=["phone", "phone-dark", "desktop", "desktop-dark"],
)
def sight(request: pytest.FixtureRequest, look: Look, written: dict[str, Path]) -> Iterator[Any]:
    width, dark = request.param
    found = look(written["page"], width=width, dark=dark, name="diagnosis")
    yield found
    assert found.complaints() == []


def drawn(page: Any, id: str) -> dict[str, Any]:
    """The first trace of a drawing as plotly has it, and whether it is on the page."""
    text = page.evaluate(
        "id => { const box = document.getElementById(id); return JSON.stringify({x: box.data[0].x, y: box.data[0].y, "
        "z: box.data[0].z, cells: box.querySelectorAll('.heatmaplayer image').length}); }",
        id,
    )
    found: dict[str, Any] = json.loads(text)
    return found


def test_every_number_of_the_issue_has_a_heat_map(sight: Any) -> None:
    sight.keep()
    for id, series in (
        ("cosine", 3), ("sign-conflict", 4), ("overlap", 3), ("norm-ratio", 3), ("effective-rank", 3),
    ):  # fmt: skip
        for number in range(series):
            found = drawn(sight.page, f"{id}-{number}")
            assert found["cells"] == 1
            assert "mlp" in found["y"] and found["x"] == ["outside", "0", "1", "2"]
            assert found["z"][found["y"].index("mlp")][0] is None
    for id in ("lambda-0", "barriers-0", "barriers-1", "redundancy-0", "activations-0"):
        assert sight.page.locator(f"#{id} .scatterlayer path.js-line").count() >= 1


def test_maps_of_tensors_are_behind_a_fold(sight: Any) -> None:
    page = sight.page
    box = page.locator("#cosine-tensors-0")
    assert not box.is_visible()
    page.get_by_text("By tensor: modules down, depths across").first.click()
    assert box.is_visible()
    page.wait_for_selector("#cosine-tensors-0 .heatmaplayer image", state="attached")
    rows = drawn(page, "cosine-tensors-0")["y"]
    assert "self_attn.q_proj" in rows and "mlp.down_proj" in rows
    wide, svg = box.bounding_box()["width"], page.locator("#cosine-tensors-0 .main-svg").first.bounding_box()["width"]
    assert abs(wide - svg) <= 2  # drawn for the width that it has now
    sight.keep("tensors")


def test_tables_are_there_without_a_script(written: dict[str, Path], chromium: Any) -> None:
    context = chromium.new_context(java_script_enabled=False)
    try:
        page = context.new_page()
        page.goto(written["page"].resolve().as_uri())
        assert page.locator("noscript p").is_visible()
        assert page.locator("table").count() >= 12
        assert not page.locator(".plot").first.is_visible()
    finally:
        context.close()


def test_the_file_can_be_sent_by_mail(written: dict[str, Path]) -> None:
    assert written["page"].stat().st_size < MOST_BYTES
