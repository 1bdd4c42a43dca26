"""LiNeS and ExPO, on top of any method."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from merging.checkpoint import Checkpoint
from merging.export import export
from merging.layout import Layout
from merging.recipe import Assignment, Group, MergingError, Recipe
from merging.scaling import expo, lines
from merging.sources import Sources

Build = Callable[..., Recipe]

AB: dict[str, dict[str, Any]] = {"a": {"coefficient": 0.5}, "b": {"coefficient": 1.5}}


def scales(recipe: Recipe) -> dict[str, float]:
    return {str(group): float(dict(each.parameters).get("delta_scale", 1.0)) for group, each in recipe.groups.items()}


def test_lines_rises_linearly_with_depth_and_is_alpha_outside(llama: Sources, uniform: Build) -> None:
    recipe = lines(uniform(llama, Assignment.of("task_arithmetic", AB)), llama.layout, 0.2, 0.8)
    found = scales(recipe)
    for kind in ("attention", "mlp", "norm"):
        assert [found[f"{kind}.{depth}"] for depth in range(3)] == pytest.approx([0.2, 0.6, 1.0])
    assert found["embedding"] == found["head"] == found["norm"] == 0.2


def test_a_stack_of_one_block_is_its_own_last(uniform: Build) -> None:
    shapes = {"h.0.mlp.up.weight": (4, 4), "h.0.mlp.down.weight": (4, 4), "wte.weight": (9, 4)}
    layout = Layout.of(shapes)
    plain = Recipe("base", {}, dict.fromkeys(layout.groups, Assignment.of("task_arithmetic", {})))
    assert scales(lines(plain, layout, 0.25, 0.5)) == {"embedding": 0.25, "mlp.0": 0.75}


def test_scalings_multiply_and_reach_single_tensors(llama: Sources, uniform: Build) -> None:
    plain = uniform(llama, Assignment.of("task_arithmetic", AB))
    name = "model.layers.2.mlp.up_proj.weight"
    special = Recipe("base", plain.sources, plain.groups, {name: Assignment.of("ties", AB, delta_scale=2.0)})
    both = expo(lines(special, llama.layout, 0.5, 0.5), 0.25)
    assert scales(both)["mlp.0"] == 0.5 * 1.25
    assert dict(both.tensors[name].parameters)["delta_scale"] == 2.0 * 1.25
    assert both.hash == lines(expo(special, 0.25), llama.layout, 0.5, 0.5).hash


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "slerp", "linear"])
def test_the_merged_delta_is_scaled_whatever_the_method(
    method: str, llama: Sources, uniform: Build, tmp_path: Path
) -> None:
    """θ0 + s·(merged − θ0), of what the method alone gives."""
    plain = uniform(llama, Assignment.of(method, AB))
    alone = Checkpoint.open(export(plain, llama, tmp_path / "alone"))
    scaled = Checkpoint.open(export(expo(lines(plain, llama.layout, 0.1, 0.6), 0.5), llama, tmp_path / "scaled"))
    for name in llama.tensors:
        depth = llama.layout.group(name).depth
        factor = 1.5 * (0.1 if depth is None else 0.1 + 0.6 * depth / 2)
        base = llama.tensor("base", name).double()
        expected = base + factor * (alone.read(name).double() - base)
        torch.testing.assert_close(scaled.read(name).double(), expected, rtol=0, atol=5e-7)


def test_expo_of_zero_changes_nothing_and_of_minus_one_is_the_base(
    llama: Sources, uniform: Build, tmp_path: Path
) -> None:
    plain = uniform(llama, Assignment.of("ties", AB))
    for alpha, expected in ((0.0, export(plain, llama, tmp_path / "plain")), (-1.0, llama.path)):
        out = export(expo(plain, alpha), llama, tmp_path / f"out{alpha}")
        assert Checkpoint.open(out).content == Checkpoint.open(expected).content


def test_numbers_that_are_none_are_refused(llama: Sources, uniform: Build) -> None:
    recipe = uniform(llama, Assignment.of("task_arithmetic", AB), {Group("head"): Assignment.of("linear", AB)})
    for bad in (float("nan"), float("inf"), "much", True, None):
        with pytest.raises(MergingError, match="expected a finite number for alpha"):
            expo(recipe, bad)  # type: ignore[arg-type]
        with pytest.raises(MergingError, match="expected a finite number for beta"):
            lines(recipe, llama.layout, 0.5, bad)  # type: ignore[arg-type]
