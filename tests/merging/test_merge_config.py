"""The short form of a merge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from golden import GOLDEN, invoke

from merging.checkpoint import Checkpoint
from merging.configs import read_config
from merging.methods.registry import canonical
from merging.recipe import Assignment, Group, MergingError, Recipe

EXPERTS = {name: str(GOLDEN / "inputs" / name) for name in ("ft1", "ft2", "ft3")}


def short(**more: Any) -> dict[str, Any]:
    data = {"base": str(GOLDEN / "inputs" / "base"), "experts": EXPERTS, "method": "ties", "vectors": "ft1 + 0.5*ft2"}
    return {key: value for key, value in (data | more).items() if value is not None}


def read(tmp_path: Path, **more: Any) -> Recipe:
    path = tmp_path / "merge.yaml"
    path.write_text(yaml.safe_dump(short(**more), sort_keys=False))
    return read_config(path)[0]


def own(recipe: Recipe, group: str = "mlp.1") -> dict[str, dict[str, Any]]:
    return {alias: dict(values) for alias, values in recipe.groups[Group.parse(group)].sources}


def shared(recipe: Recipe, group: str = "mlp.1") -> dict[str, Any]:
    return dict(recipe.groups[Group.parse(group)].parameters)


def test_an_expression_is_its_coefficients_and_all_else_the_papers_defaults(tmp_path: Path) -> None:
    recipe = read(tmp_path)
    wanted = Assignment.of("ties", {"ft1": {"coefficient": 1.0}, "ft2": {"coefficient": 0.5}})
    assert set(recipe.groups.values()) == {canonical(wanted)} and recipe.tensors == {}
    assert recipe.hash == read(tmp_path, vectors=None, coefficients={"ft1": 1, "ft2": 0.5}).hash
    assert recipe.hash == read(tmp_path, vectors="base + ft2/2 + ft1 - 0*ft3").hash


def test_one_coefficient_is_that_of_every_expert(tmp_path: Path) -> None:
    found = own(read(tmp_path, method="task_arithmetic", vectors=None, coefficients=0.3))
    assert found == {name: {"coefficient": 0.3} for name in EXPERTS}


def test_parameters_of_sources_stand_for_all_or_for_one(tmp_path: Path) -> None:
    recipe = read(tmp_path, parameters={"density": 0.3, "scale": 0.7}, sources={"ft2": {"density": 0.1}})
    assert {alias: values["density"] for alias, values in own(recipe).items()} == {"ft1": 0.3, "ft2": 0.1}
    assert shared(recipe)["scale"] == 0.7


def test_groups_are_overridden_in_order_by_kind_block_and_range(tmp_path: Path) -> None:
    recipe = read(
        tmp_path,
        parameters={"density": 0.5, "scale": 0.9},
        sources={"ft2": {"density": 0.6}},  # takes no part in blocks 2 and 3
        groups={
            "mlp": {"parameters": {"scale": 0.1}},
            "*.2-3": {"vectors": "ft3"},
            "mlp.3": {"sources": {"ft3": {"density": 0.25}}},
            "head": {"method": "linear", "coefficients": {"base": 1, "ft1": 1}},
        },
    )
    assert shared(recipe, "attention.0")["scale"] == 0.9 and shared(recipe, "mlp.0")["scale"] == 0.1
    assert own(recipe, "mlp.1").keys() == {"ft1", "ft2"}
    assert own(recipe, "attention.2") == own(recipe, "norm.3") == {"ft3": {"coefficient": 1.0, "density": 0.5}}
    assert own(recipe, "mlp.3") == {"ft3": {"coefficient": 1.0, "density": 0.25}}
    assert shared(recipe, "mlp.3")["scale"] == shared(recipe, "mlp.2")["scale"] == 0.1
    assert recipe.groups[Group("head")] == canonical(
        Assignment.of("linear", {"base": {"coefficient": 1.0}, "ft1": {"coefficient": 1.0}})
    )


def test_scalings_come_on_top(tmp_path: Path) -> None:
    recipe = read(tmp_path, lines={"alpha": 0.4, "beta": 0.6}, expo=0.5)
    assert shared(recipe, "embedding")["delta_scale"] == pytest.approx(0.6)
    assert [shared(recipe, f"norm.{i}").get("delta_scale", 1.0) for i in range(4)] == pytest.approx(
        [0.6, 0.9, 1.2, 1.5]
    )


def test_methods_without_coefficients(tmp_path: Path) -> None:
    assert own(read(tmp_path, method="sce", vectors=None)).keys() == EXPERTS.keys()
    assert own(read(tmp_path, method="sce", vectors="ft3 + ft1")).keys() == {"ft1", "ft3"}
    assert own(read(tmp_path, method="magmax", vectors=None)).keys() == EXPERTS.keys()
    with pytest.raises(MergingError, match="method sce has no coefficients"):
        read(tmp_path, method="sce", vectors="ft1 + 0.5*ft2")


def test_the_analogy_through_the_command(tmp_path: Path) -> None:
    """C + B − A of models, by hand."""
    path = tmp_path / "merge.yaml"
    path.write_text(yaml.safe_dump(short(method="task_arithmetic", vectors="ft3 + ft2 - ft1")))
    result = invoke("merge", path, tmp_path / "out")
    assert result.exit_code == 0, result.output
    merged, *models = (
        Checkpoint.open(folder) for folder in (tmp_path / "out", *(GOLDEN / "inputs" / name for name in EXPERTS))
    )
    for name in merged.tensors:
        a, b, c = (model.read(name).double() for model in models)
        assert float((merged.read(name).double() - (c + b - a)).abs().max()) < 5e-7
    assert read_config(tmp_path / "out" / "recipe.yaml")[0].hash == read_config(path)[0].hash
    assert read_config(tmp_path / "out" / "mergekit.yaml")[0].hash == read_config(path)[0].hash


def test_dtype_and_names_beside_the_config(tmp_path: Path) -> None:
    (tmp_path / "here").symlink_to(GOLDEN / "inputs" / "base")
    assert read(tmp_path, base="here", dtype="bfloat16").dtype == "bfloat16"


BAD = [
    ({"base": None}, "expected a base"),
    ({"method": None}, "expected a method"),
    ({"metod": "ties"}, "unknown key 'metod'; did you mean 'method'"),
    ({"method": "tis"}, "there is no merge method 'tis'; did you mean 'ties'"),
    ({"base": "nowhere"}, "expected a model folder for 'nowhere'"),
    ({"dtype": "bf16"}, "expected dtype to be one of"),
    ({"experts": ["a"]}, "experts: expected a mapping"),
    ({"experts": {"base": EXPERTS["ft1"]}}, "an expert may not be called 'base'"),
    ({"vectors": "ft9"}, "names the model 'ft9'; did you mean"),
    ({"vectors": {"ft1": 1}}, "expected vectors to be an expression"),
    ({"coefficients": {"ft1": 1}}, "expected one of vectors and coefficients, found both"),
    ({"vectors": None}, "needs vectors, such as ft1 + ft2 + ft3, or coefficients"),
    ({"vectors": None, "coefficients": {"ft8": 1}}, "unknown key 'ft8'"),
    ({"vectors": None, "coefficients": {"ft1": "much"}}, "expected a number"),
    ({"vectors": None, "coefficients": [1, 0.5]}, "expected one value as coefficient of ties, found [1, 0.5]"),
    ({"parameters": {"density": [0.5]}}, "expected one value as density"),
    ({"parameters": {"densty": 0.3}}, "unknown key 'densty'; did you mean 'density'"),
    ({"parameters": {"density": 2}}, "expected a finite number in [0, 1]"),
    ({"sources": {"ft3": {"density": 0.3}}}, "unknown key 'ft3'"),
    ({"sources": {"ft1": {"scale": 0.3}}}, "unknown key 'scale'"),
    ({"groups": {"mpl": {}}}, "expected a kind (attention, mlp"),
    ({"groups": {"mlp.9": {}}}, "the model has no such group"),
    ({"groups": {"mlp": {"lines": {}}}}, "unknown key 'lines'"),
    ({"groups": {"mlp": 3}}, "expected a mapping, found 3"),
    ({"lines": {"alpha": 0.5}}, "expected lines: {alpha: …, beta: …}"),
    ({"lines": {"alpha": 0.5, "beta": "x"}}, "expected a finite number for beta"),
    ({"expo": True}, "expected a finite number for alpha"),
    ({"tokenizer": "nowhere"}, "expected a model folder for 'nowhere'"),
]


@pytest.mark.parametrize(("more", "message"), BAD, ids=[message[:40] for _, message in BAD])
def test_mistakes_are_named(more: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(MergingError) as caught:
        read(tmp_path, **more)
    assert message in str(caught.value)
