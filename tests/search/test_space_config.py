"""The ``space:`` of a config: what it takes, and where it points when it does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from search.config import load_config, resolved_yaml
from search.errors import SearchError
from search.schema import Config, SpaceConfig

GOOD = """\
name: demo
models:
  base: models/base
  experts: {math: models/math, code: models/code}
evaluators:
  math: {type: exact_match, data: data/math}
objectives: [math.accuracy]
search: {budget: {candidates: 50}}
space:
"""


def loaded(folder: Path, space: str) -> SpaceConfig:
    path = folder / "config.yaml"
    path.write_text(GOOD + space, encoding="utf-8")
    return load_config(path).config.space


def message(folder: Path, space: str) -> str:
    with pytest.raises(SearchError) as caught:
        loaded(folder, space)
    return str(caught.value)


def test_everything_at_once(tmp_path: Path) -> None:
    space = loaded(
        tmp_path,
        """\
  coefficient: [-0.5, 1.5]
  granularity: lines
  shared: true
  methods:
    - task_arithmetic
    - {name: dare_ties, parameters: {rescale: [true, false], scale: [0.5, 2.0], seed: 3, convention: paper}}
  method_blocks: 2
  density: [0.1, 0.9]
  shared_density: true
""",
    )
    first, second = space.methods
    assert first == "task_arithmetic"
    assert not isinstance(second, str)
    assert second.parameters == {"rescale": [True, False], "scale": [0.5, 2.0], "seed": 3, "convention": "paper"}
    assert isinstance(second.parameters["seed"], int)
    assert (space.granularity, space.shared, space.shared_density, space.density) == ("lines", True, True, (0.1, 0.9))


def test_a_space_survives_being_written_out(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(GOOD + "  methods: [{name: ties, parameters: {rescale: [true, false], seed: [0, 9]}}]\n")
    config = load_config(path).config
    assert Config.model_validate(config.model_dump(mode="json")) == config
    again = tmp_path / "resolved.yaml"
    again.write_text(resolved_yaml(config), encoding="utf-8")
    assert load_config(again).config == config


WRONG = {
    "an unknown method": (
        "  methods: [tie]",
        "10:13: space.methods.0: there is no merge method 'tie'; did you mean 'ties'?",
    ),
    "an unknown key of a method": (
        "  methods: [{name: ties, parametres: {}}]",
        "10:26: space.methods.0.parametres: unknown key. Did you mean 'parameters'? Known keys: name, parameters.",
    ),
    "a method without a name": (
        "  methods: [{parameters: {}}]",
        "10:13: space.methods.0.name: is required and missing",
    ),
    "an unknown parameter": (
        "  methods: [linear, {name: ties, parameters: {densty: 0.2}}]",
        "10:55: space.methods.1.parameters.densty: ties has no parameter 'densty'; did you mean 'density'?",
    ),
    "a value out of range": (
        "  methods: [{name: ties, parameters: {density: [0.2, 2]}}]",
        "10:39: space.methods.0.parameters.density: expected a finite number in [0, 1], found 2",
    ),
    "a value of another type": (
        "  methods: [{name: ties, parameters: {rescale: maybe}}]",
        "10:48: space.methods.0.parameters.rescale: expected bool, found 'maybe'",
    ),
    "no value": (
        "  methods: [{name: ties, parameters: {scale: }}]",
        "10:26: space.methods.0.parameters: expected a value for scale, or a list of values, found None",
    ),
    "bounds the wrong way round": (
        "  methods: [{name: ties, parameters: {scale: [2, 1]}}]",
        "space.methods.0.parameters.scale: expected a number, or [low, high] with low < high, found [2, 1]",
    ),
    "a coefficient among the parameters": (
        "  methods: [{name: ties, parameters: {coefficient: 1}}]",
        "space.methods.0.parameters.coefficient: coefficients are genes already",
    ),
    "options that exclude each other": (
        "  methods: [{name: ties, parameters: {trim: model, convention: [paper, mergekit]}}]",
        "10:13: space.methods.0: ties has trim: model in the paper's convention only",
    ),
    "too many experts": ("  methods: [passthrough]", "space.methods.0: passthrough merges exactly one expert, found 2"),
    "a method twice": ("  methods: [ties, {name: ties}]", "space.methods: the method ties is named twice"),
    "one method for a list": (
        "  methods: ties",
        "expected a list of methods, such as [task_arithmetic, ties], found 'ties'",
    ),
    "a number for a method": ("  methods: [3]", "expected the name of a method, or {name: …, parameters: …}, found 3"),
    "a density that is none": (
        "  density: [0.5, 1.2]",
        "10:3: space.density: expected [low, high] with 0 <= low < high <= 1, found [0.5, 1.2]",
    ),
    "densities between two steps": (
        "  methods: [ties]\n  density: [0.2, 0.21]",
        "11:3: space.density: expected bounds of the density in [0, 1] with two or more multiples of 1/64",
    ),
    "a granularity that is none": (
        "  granularity: line",
        "space.granularity: expected model, layer, tensor, lines, {knots: k}, {blocks: n} or {blocks: auto}, "
        "found 'line'",
    ),
    "knots that are no number": (
        "  granularity: {knots: auto}",
        "space.granularity: expected a whole number of knots from 1 to 128, found 'auto'",
    ),
    "endless bounds": ("  coefficient: [0, .inf]", "space.coefficient: expected [low, high] with low < high"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_spaces_say_where_and_what(case: str, tmp_path: Path) -> None:
    text, expected = WRONG[case]
    found = message(tmp_path, text + "\n")
    assert expected in found
    assert "config.yaml:1" in found
    assert "Traceback" not in found


def test_densities_that_nothing_has_are_not_looked_at(tmp_path: Path) -> None:
    assert loaded(tmp_path, "  density: [0.2, 0.21]\n").density == (0.2, 0.21)


def test_problems_of_several_methods_come_at_once(tmp_path: Path) -> None:
    found = message(tmp_path, "  methods: [tie, {name: della, parameters: {epsilon: 2, gamma: 1}}]\n")
    assert [part in found for part in ("'tie'", "parameters.epsilon", "parameters.gamma")] == [True] * 3
