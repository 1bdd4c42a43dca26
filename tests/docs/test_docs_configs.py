"""The YAML that pages show keeps the schema: whole configs of searches, single merges, and pieces of configs."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import jsonschema
import pytest
import yaml
from docs_pages import ROOT, pages

BLOCKS = [
    (f"{page.name}:{block.line}", yaml.safe_load(block.text))
    for page in pages("README.md", "docs/**/*.md")
    for block in page.blocks
    if block.language == "yaml"
    and page.path.name not in ("evaluators.md", "lm_eval.md", "preferences.md", "refusal.md")
]
WHOLE = [(place, data) for place, data in BLOCKS if isinstance(data, dict) and {"models", "objectives"} <= data.keys()]
PIECES = [
    (place, data)
    for place, data in BLOCKS
    if isinstance(data, dict) and (place, data) not in WHOLE and data.keys() <= {"search", "space", "workers", "engine"}
]


@cache
def validator(*, whole: bool) -> Any:
    """Of configs, or of pieces that leave out what is said elsewhere."""
    schema = json.loads((ROOT / "search" / "config.schema.json").read_text(encoding="utf-8"))
    return jsonschema.Draft202012Validator(schema if whole else without_required(schema))


def without_required(part: Any) -> Any:
    """A schema that asks for no key."""
    if isinstance(part, dict):
        return {key: without_required(value) for key, value in part.items() if key != "required"}
    return [without_required(each) for each in part] if isinstance(part, list) else part


@pytest.mark.parametrize(("place", "data"), WHOLE, ids=[place for place, _ in WHOLE])
def test_a_whole_config_keeps_the_schema(place, data):
    validator(whole=True).validate(data)


@pytest.mark.parametrize(("place", "data"), PIECES, ids=[place for place, _ in PIECES])
def test_a_piece_of_a_config_keeps_the_schema(place, data):
    validator(whole=False).validate(data)


def test_a_wrong_config_does_not():
    wrong = {**WHOLE[0][1], "search": {"budgett": {"candidates": 3}}}
    assert not validator(whole=True).is_valid(wrong)
    assert not validator(whole=False).is_valid({"search": wrong["search"]})


def test_there_are_configs_to_look_at():
    assert len(WHOLE) >= 8
    assert any(place.startswith("README.md") for place, _ in WHOLE)
    assert len(PIECES) >= 4
