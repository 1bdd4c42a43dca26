"""Knots that give way, lines over the depth, and tensors one by one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from merging.recipe import Group, SourceRef
from merging.scaling import lines
from search.optimizers.contract import Genome
from search.space import Bounds, Knots, Space, SpaceError

EXPERTS = ("zeta", "alpha", "mid")
SOURCES = {alias: SourceRef(f"models/{alias}", f"sha256:{alias}") for alias in ("base", *EXPERTS)}


def groups(depths=3, stacks=("",)):
    kinds = ("attention", "mlp", "norm")
    inside = [Group(kind, depth, stack) for stack in stacks for depth in range(depths) for kind in kinds]
    return [Group("embedding"), Group("head"), Group("norm"), *inside]


def space(granularity="model", *, experts=EXPERTS, of=None, low=0.0, high=1.5, kinds=(), **more):
    return Space(
        base="base",
        sources=SOURCES,
        experts=experts,
        groups=groups() if of is None else of,
        granularity=granularity,
        kinds=kinds,
        coefficient=Bounds(low, high),
        **more,
    )


def test_knots_give_way_to_methods_without_coefficients():
    """A knot whose own depth takes no coefficient stands at the nearest that does, between its neighbours."""
    of = [Group("mlp", depth) for depth in range(6)]
    kinds = [["mlp"]]
    found = space(Knots(3), experts=("zeta", "mid"), of=of, kinds=kinds, high=1.0, methods=["task_arithmetic", "ram"],
                  method_blocks=3)  # fmt: skip
    assert [gene.depth for gene in found.genes[:3]] == [0, 2, 5]
    values = (0.0, 0.5, 1.0) * 2
    table = found.table(found.decode(Genome(values, (0, 0, 0))))["zeta"]
    assert [table[Group("mlp", depth)] for depth in range(3)] == [0.0, 0.25, 0.5]
    # The middle block takes none: its knot, at depth 2, moves to depth 1.
    table = found.table(found.decode(Genome(values, (0, 1, 0))))["zeta"]
    assert {group.depth: value for group, value in table.items()} == {0: 0.0, 1: 0.5, 4: 0.875, 5: 1.0}
    # Only the middle one takes them, depths 2 and 3: the second knot stays, the third comes, the first is too far.
    only = Genome(values, (1, 0, 1))
    table = found.table(found.decode(only))["zeta"]
    assert {group.depth: value for group, value in table.items()} == {2: 0.5, 3: 1.0}
    assert found.canonical(only).values == (0.5, 0.5, 1.0) * 2


def test_lines_are_lines():
    found = space("lines", experts=("zeta", "mid"), low=-1.0, high=1.0)
    assert [gene.name for gene in found.genes] == ["zeta.alpha", "zeta.beta", "mid.alpha", "mid.beta"]
    alpha, beta = -0.3, 0.9
    table = found.table(found.decode(Genome(((alpha + 1) / 2, (beta + 1) / 2, 0.5, 1.0))))
    for group, value in table["zeta"].items():
        expected = alpha if group.depth is None else alpha + beta * group.depth / 2
        assert value == pytest.approx(expected, abs=1e-12)
    assert table["mid"][Group("head")] == 0.0
    assert table["mid"][Group("mlp", 2)] == 1.0


class _Layout:
    """As much of a layout as :func:`merging.scaling.lines` asks for."""

    def depth(self, stack):
        return {"encoder": 4, "decoder": 4}[stack]


@given(st.floats(-1, 1), st.floats(-1, 1))
@settings(max_examples=30, deadline=None)
def test_lines_are_the_scaling_of_merging(alpha, beta):
    """A task vector times λ_l is a whole task vector under delta_scale λ_l."""
    of = groups(4, ("encoder", "decoder"))
    found = space("lines", experts=("zeta",), of=of, low=-1.0, high=1.0)
    table = found.table(found.decode(Genome(((alpha + 1) / 2, (beta + 1) / 2))))["zeta"]
    one = space("model", experts=("zeta",), of=of)
    scaled = lines(one.decode(one.uniform({"zeta": 1.0})), _Layout(), alpha, beta)
    for group, assignment in scaled.groups.items():
        assert table[group] == pytest.approx(dict(assignment.parameters)["delta_scale"], abs=2e-12)


def test_tensors_have_genes_of_their_own_and_a_group_says_what_most_of_them_do():
    of = [Group("mlp", depth) for depth in range(2)]
    names = {"mlp.0.a": of[0], "mlp.0.b": of[0], "mlp.0.c": of[0], "mlp.1.a": of[1]}
    found = Space(base="base", sources=SOURCES, experts=("zeta",), groups=of, granularity="tensor", kinds=[],
                  coefficient=Bounds(0.0, 1.0), tensors=names)  # fmt: skip
    assert [gene.name for gene in found.genes] == ["zeta.mlp.0.a", "zeta.mlp.0.b", "zeta.mlp.0.c", "zeta.mlp.1.a"]
    recipe = found.decode(Genome((0.25, 0.5, 0.5, 0.75)))
    assert list(recipe.tensors) == ["mlp.0.a"]
    weights = {name: recipe.for_tensor(name, group).sources[0][1][0][1] for name, group in names.items()}
    assert weights == {"mlp.0.a": 0.25, "mlp.0.b": 0.5, "mlp.0.c": 0.5, "mlp.1.a": 0.75}
    assert found.table(recipe)["zeta"] == {of[0]: pytest.approx(1.25 / 3), of[1]: 0.75}


def test_tensors_must_be_those_of_the_model():
    with pytest.raises(SpaceError, match="names of the model's tensors"):
        Space(base="base", sources=SOURCES, experts=EXPERTS, groups=groups(), granularity="tensor", kinds=[],
              coefficient=Bounds(0.0, 1.0))  # fmt: skip
    with pytest.raises(SpaceError, match="exactly the model's groups"):
        Space(base="base", sources=SOURCES, experts=EXPERTS, groups=groups(), granularity="tensor", kinds=[],
              coefficient=Bounds(0.0, 1.0), tensors={"a": Group("head")})  # fmt: skip


def test_lines_are_read_back_whatever_their_slope():
    found = space("lines", experts=("zeta",), of=[Group("mlp", depth) for depth in range(14)], low=-1.0, high=8.0)
    for start, rise in np.random.default_rng(3).random((200, 2)).tolist():
        genome = Genome((start, (1.0 + 10.0 ** (-8.0 * rise)) / 9.0))
        again = found.encode(found.decode(genome))  # or it raises
        assert found.named(again) == found.named(genome)
