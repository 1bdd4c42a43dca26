"""Stages: baselines, what is handed to the optimizer, and what one stage can tell the next."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from merging.recipe import Assignment, Group, SourceRef
from search import stages as module
from search.optimizers.contract import Genome, Settings
from search.schema import Config
from search.space import SpaceError
from search.stages import LAMBDA_GRID, Stage, build_optimizer, build_stages, translate

GROUPS = [Group("embedding"), Group("norm"), Group("head")]
GROUPS += [Group(kind, depth) for depth in range(4) for kind in ("attention", "mlp", "norm")]
TENSORS = {f"{group}.{name}": group for group in GROUPS for name in ("weight", "bias")}


def config(space: dict[str, Any] | None = None, experts: tuple[str, ...] = ("math", "code")) -> Config:
    return Config.model_validate(
        {
            "name": "stages",
            "models": {"base": "models/base", "experts": {each: f"models/{each}" for each in experts}},
            "evaluators": {"math": {"type": "exact_match", "data": "x"}},
            "objectives": ["math.accuracy"],
            "space": space or {},
            "search": {"budget": {"candidates": 100}, "seed": 5, "optimizer": "random"},
        }
    )


def stages(
    space: dict[str, Any] | None = None, experts: tuple[str, ...] = ("math", "code"), **more: Any
) -> list[Stage]:
    of = config(space, experts)
    sources = {alias: SourceRef(f"models/{alias}", f"sha256:{alias}") for alias in ("base", *experts)}
    return build_stages(of, GROUPS, sources, tensors=TENSORS, **more)


def test_baselines_are_what_a_winner_has_to_beat() -> None:
    first = stages()[0]
    grid = [f"task arithmetic {value}" for value in LAMBDA_GRID]
    labels = [label for label, _ in first.fixed]
    assert labels[:4] == ["base", "expert math", "expert code", "average"]
    assert labels[4:] == [*grid, "ties λ=1", "dare_ties λ=1"]
    recipes = {label: first.space.decode(genome).groups[Group("mlp", 2)] for label, genome in first.fixed}
    both = {"code": {"coefficient": 1.0, "density": 0.2}, "math": {"coefficient": 1.0, "density": 0.2}}
    assert recipes["ties λ=1"] == Assignment.of(
        "ties", both, scale=1.0, normalize=True, rescale=False, trim="tensor", seed=0, convention="paper"
    )
    half = {alias: {"coefficient": 1.0, "density": 0.5} for alias in both}
    assert recipes["dare_ties λ=1"] == Assignment.of(
        "dare_ties", half, scale=1.0, normalize=True, rescale=True, seed=0, convention="paper"
    )
    assert recipes["average"] == Assignment.of(
        "task_arithmetic", {"code": {"coefficient": 0.5}, "math": {"coefficient": 0.5}}, normalize=False, scale=1.0
    )


def test_baselines_of_old_runs_are_as_they_were() -> None:
    old, new = stages(version=1)[0], stages()[0]
    assert old.space.box.categories == ()
    assert [label for label, _ in old.fixed] == [label for label, _ in new.fixed][:-2]
    for (label, one), (_, two) in zip(old.fixed, new.fixed, strict=False):
        assert one.values == two.values
        assert old.space.decode(one).hash == new.space.decode(two).hash, label
    assert old.end == new.end - 2


def test_baselines_that_are_one_recipe_are_one_candidate() -> None:
    labels = [label for label, _ in stages(experts=("math",))[0].fixed]
    assert labels[:2] == ["base", "expert math"]
    assert "task arithmetic 1.0" not in labels
    assert "average" not in labels
    assert labels[-2:] == ["ties λ=1", "dare_ties λ=1"]


@pytest.mark.parametrize("granularity", ["model", "layer", "tensor", "lines", {"knots": 3}, {"blocks": 2}])
def test_baselines_and_first_stages_can_be_told_to_later_ones(granularity: Any) -> None:
    found = stages({"granularity": granularity, "methods": ["task_arithmetic", "ties"], "method_blocks": 2})
    last = found[-1].space
    told = {label for label, genome in found[0].fixed if translate(genome, found[0].space, last) is not None}
    assert {"base", "expert math", "average", "task arithmetic 0.4"} <= told
    assert "dare_ties λ=1" not in told
    assert [stage.name for stage in found[1:-1]] == ([] if granularity == "model" else ["per-expert"])
    for stage in found[1:-1]:
        genome = Genome((0.3, 0.8, 0.1, 0.9, 0.6, 0.4), (1, 0))
        moved = translate(genome, stage.space, last)
        assert moved is not None
        assert last.decode(moved).hash == stage.space.decode(genome).hash
        assert set(last.chosen_methods(last.decode(moved)).values()) == {"task_arithmetic", "ties"}


def test_keys_of_the_config_reach_the_space() -> None:
    rich = {
        "granularity": {"knots": 2}, "kinds": [["attention", "mlp", "norm", "embedding", "head"]], "shared": True,
        "density": [0.25, 0.5], "shared_density": True, "coefficient": [-0.5, 0.5],
        "methods": [{"name": "dare_ties", "parameters": {"scale": [0.5, 2.0], "seed": 3, "rescale": [True, False]}}],
    }  # fmt: skip
    space = stages(rich)[-1].space
    assert [gene.name for gene in space.genes] == [
        "coefficient.attention+mlp+norm+embedding+head@knot0",
        "coefficient.attention+mlp+norm+embedding+head@knot1",
        "density",
        "dare_ties.scale",
        "dare_ties.rescale",
    ]
    assert [gene.bounds for gene in space.genes[:4]] == [(-0.5, 0.5), (-0.5, 0.5), (0.25, 0.5), (0.5, 2.0)]
    recipe = space.decode(space.center())
    assert dict(recipe.groups[Group("head")].parameters)["seed"] == 3


def test_the_optimizer_is_handed_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    handed: list[Settings] = []
    monkeypatch.setattr(module.registry, "build", lambda name, settings, folder=None: handed.append(settings))
    of = config({"methods": ["ties"]})
    last = stages({"methods": ["ties"]})[-1]
    build_optimizer(of, last, 75, 2, seconds=3.5)
    build_optimizer(of, last, 75, 2)
    first, second = handed
    assert (first.seconds, second.seconds) == (3.5, None)
    assert (first.box, first.budget, first.objectives, first.seed) == (last.space.box, 75, 2, 5002)
    assert first.canonical is not None
    assert first.center is not None
    assert first.canonical(first.center) == last.space.canonical(last.space.center())
    recipe = last.space.decode(first.center)
    assert set(itertools.chain.from_iterable(each.values() for each in last.space.table(recipe).values())) == {1.0}


def test_tensors_are_needed_where_they_are_searched() -> None:
    sources = {alias: SourceRef(alias, f"sha256:{alias}") for alias in ("base", "math", "code")}
    with pytest.raises(SpaceError, match="names of the model's tensors"):
        build_stages(config({"granularity": "tensor"}), GROUPS, sources)
