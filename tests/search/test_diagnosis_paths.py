"""What a diagnosis says of a config that lays paths through layers: which part of it applies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from checking import project, reweigh

from search.cli import run_command

FLOW: dict[str, Any] = {"data_flow": {"models": ["two", "one"], "repetitions": 1}}
FIRST: dict[str, Any] = {"name": "evolved", "space": {}, "search": {"budget": {"candidates": 10}}}


def diagnosed(folder: Path, capsys: pytest.CaptureFixture[str], **changes: Any) -> tuple[str, dict[str, Any]]:
    """What is printed, spaces made equal, and the same for machines."""
    config = project(folder, lambda config: config.update(changes))
    assert run_command(["diagnose", str(config), "--spectra", "off"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert run_command(["diagnose", str(config), "--spectra", "off", "--json"]) == 0
    return said, json.loads(capsys.readouterr().out)


def test_a_merge_is_spoken_of_as_ever(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said, facts = diagnosed(tmp_path, capsys)
    assert "paths" not in facts and "data_flow" not in said
    assert "In a search's config:" in said


def test_of_paths_it_says_first_that_the_verdict_is_not_about_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said, facts = diagnosed(tmp_path, capsys, space=FLOW)
    assert said.startswith("This search lays paths through layers (data_flow)")
    assert "foretells nothing of paths" in said and "two (model A), one" in said
    assert "In a search's config:" not in said  # that space would merge
    assert "hardly compare" not in said
    layers = [each for name, each in facts["diagnosis"]["groups"].items() if name[-1].isdigit()]
    apart = sum(each["euclidean"][0] ** 2 for each in layers) / sum(each["base_norm"] ** 2 for each in layers)
    assert facts["paths"] == {
        "models": ["two", "one"], "distance": {"one": pytest.approx(apart**0.5)}, "made": [], "merging": "",
    }  # fmt: skip
    assert f"one {apart**0.5:.2f}" in said


def test_layers_of_another_training_hardly_compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    def other(tensors: dict[str, Any]) -> None:
        for number, name in enumerate(tensors):
            noise = torch.randn(tensors[name].shape, generator=torch.Generator().manual_seed(number))
            tensors[name] = noise * tensors[name].norm() / noise.norm()

    project(tmp_path)
    reweigh(tmp_path / "one", other)
    (tmp_path / "config.yaml").rename(tmp_path / "merge.yaml")
    (tmp_path / "config.yaml").write_text(
        (tmp_path / "merge.yaml").read_text().replace("granularity: {knots: 2}", "data_flow: {models: [base, one]}")
    )
    assert run_command(["diagnose", str(tmp_path / "config.yaml"), "--spectra", "off"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "base (model A), one" in said and "For one that is more than 0.5" in said and "hardly compare" in said


def test_of_a_hybrid_it_says_which_search_it_is_about(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flow = {"data_flow": {"models": ["evolved", "one"]}}
    said, facts = diagnosed(tmp_path / "second", capsys, space=flow, first=FIRST)
    assert "is about the first search alone" in said and "In a search's config:" in said
    assert "Made of other models, and not looked at: evolved" in said
    assert facts["paths"]["distance"] == {} and facts["paths"]["made"] == ["evolved"]


def test_the_page_says_it_too(tmp_path: Path) -> None:
    config = project(tmp_path, lambda config: config.update(space=FLOW))
    page = tmp_path / "page.html"
    assert run_command(["diagnose", str(config), "--spectra", "off", "--html", str(page)]) == 0
    head = page.read_text().partition("<header>")[2].partition("</header>")[0]
    assert "foretells nothing of paths" in head and "<pre>" not in head
