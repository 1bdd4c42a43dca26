"""Kind sets that choose their method, densities and parameters for themselves."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from merging.recipe import Group, SourceRef
from search.optimizers.contract import Genome
from search.schema import SpaceConfig
from search.space import Blocks, Bounds, MethodChoice, Space

EXPERTS = ("one", "two", "three")
SOURCES = {alias: SourceRef(f"models/{alias}", f"sha256:{alias}") for alias in ("base", *EXPERTS)}


def llama(layers: int, *, tied: bool = False) -> list[Group]:
    """The groups of a decoder whose blocks have attention, MLP and norms."""
    inside = [Group(kind, depth) for depth in range(layers) for kind in ("attention", "mlp", "norm")]
    return [Group("embedding"), *([] if tied else [Group("head")]), Group("norm"), *inside]


def space(of: list[Group], **more: object) -> Space:
    given = {"granularity": "layer", "coefficient": Bounds(0.0, 1.0), "density": Bounds(0.0, 1.0), **more}
    return Space(base="base", sources=SOURCES, experts=EXPERTS, groups=of, **given)  # type: ignore[arg-type]


LAYER_WISE = [["attention", "mlp", "norm"], ["embedding"], ["head"]]


def test_layer_wise_evollm_has_204_genes() -> None:
    """32 layers, input embedding and head, each with a weight and a density for three models; the final norm goes with
    the last layer."""
    found = space(llama(32), kinds=LAYER_WISE, methods=["dare_ties"], method_blocks=32, method_kinds=True)
    roles = Counter(gene.role for gene in found.genes)
    assert roles == {"coefficient": 34 * 3, "density": 34 * 3}
    assert len({gene.name for gene in found.genes}) == 204
    names = {gene.name for gene in found.genes}
    assert {"density.one.embedding@block0", "density.two.head@block31", "one.embedding"} <= names
    together = space(llama(32), kinds=LAYER_WISE, methods=["dare_ties"], method_blocks=32)
    assert Counter(gene.role for gene in together.genes)["density"] == 32 * 3
    recipe = found.decode(found.center())
    assert recipe.groups[Group("norm")] == recipe.groups[Group("attention", 31)]


def test_a_parameter_of_one_kind_set_moves_its_own_groups_alone() -> None:
    of = llama(4)
    methods = [MethodChoice("ties", {"scale": [0.5, 2.0], "rescale": [True, False]}), "linear"]
    kinds = [["attention"], ["mlp"], ["norm", "embedding", "head"]]
    found = space(of, granularity=Blocks(2), kinds=kinds, methods=methods, method_blocks=2, method_kinds=True)
    names = [gene.name for gene in found.genes]
    assert names.count("ties.scale.mlp@block1") == names.count("ties.rescale.mlp@block1") == 1
    assert Counter(gene.role for gene in found.genes) == {
        "coefficient": 18, "density": 18, "method": 6, "parameter": 12
    }  # fmt: skip
    start = found.canonical(Genome((0.5,) * found.box.continuous, (0,) * len(found.box.categories)))
    before = found.decode(start).groups
    own = {group for group in of if group.kind == "mlp" and group.depth in (2, 3)}

    def moved(genome: Genome) -> set[Group]:
        after = found.decode(genome).groups
        return {group for group in of if after[group] != before[group]}

    values, choices = list(start.values), list(start.categories)
    values[names.index("ties.scale.mlp@block1")] = 0.9
    assert moved(replace(start, values=tuple(values))) == own
    place = names.index("method.mlp@block1") - found.box.continuous
    choices[place] = 1
    linear = replace(start, categories=tuple(choices))
    assert moved(linear) == own
    # nothing of ties is left there, so that its parameters say nothing
    silent = found.canonical(replace(linear, values=tuple(values)))
    assert silent == found.canonical(linear)
    assert found.encode(found.decode(linear)) == silent


def test_kind_sets_choose_apart_at_any_granularity() -> None:
    found = space(llama(3), granularity="model", kinds=LAYER_WISE, methods=["ties", "linear"], method_kinds=True)
    assert [gene.name for gene in found.genes if gene.role == "method"] == [
        "method.attention+mlp+norm@block0", "method.embedding@block0", "method.head@block0"
    ]  # fmt: skip
    tied = space(llama(3, tied=True), kinds=LAYER_WISE, methods=["dare_ties"], method_blocks=3, method_kinds=True)
    assert len(tied.genes) == 4 * 3 * 2


def test_runs_without_it_say_nothing_of_it() -> None:
    assert "method_kinds" not in SpaceConfig().model_dump(mode="json")
    assert SpaceConfig(method_kinds=True).model_dump(mode="json")["method_kinds"] is True
    assert SpaceConfig.model_validate(SpaceConfig(method_kinds=True).model_dump(mode="json")).method_kinds
    plain = space(llama(3), kinds=LAYER_WISE, methods=["ties", "linear"], method_blocks=2)
    again = space(llama(3), kinds=LAYER_WISE, methods=["ties", "linear"], method_blocks=2, method_kinds=False)
    assert plain.genes == again.genes
    assert "method@block1" in [gene.name for gene in plain.genes]
    with pytest.raises(StopIteration):
        next(gene for gene in plain.genes if gene.name.startswith("method."))
