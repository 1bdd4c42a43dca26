"""Spaces with method choice, densities, parameters, shared genes, tensors and lines."""

import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from merging.methods import registry
from merging.methods.registry import canonical
from merging.recipe import Assignment, Group, Recipe, SourceRef
from search.optimizers.contract import Genome
from search.space import Blocks, Bounds, Knots, MethodChoice, Space, SpaceError

EXPERTS = ("zeta", "alpha", "mid")
SOURCES = {alias: SourceRef(f"models/{alias}", f"sha256:{alias}") for alias in ("base", *EXPERTS)}
KINDS = ("attention", "mlp", "norm")
EVERY_KIND = [["attention"], ["mlp"], ["norm"], ["embedding"], ["head"]]

PARAMETERS = {
    "ties": {"rescale": [True, False], "scale": [0.5, 2.0], "trim": ["tensor", "model"], "delta_scale": [0.5, 1.0]},
    "dare_ties": {"seed": [0, 3], "convention": ["paper", "mergekit"], "normalize": [True, False]},
    "dare_linear": {"normalize": [True, False], "density": [0.25, 0.75]},
    "della": {"epsilon": [0.02, 0.1], "density": 0.6},
    "breadcrumbs": {"gamma": [0.0, 0.1], "scale": 0.7},
    "task_arithmetic": {"normalize": [False, True], "scale": [0.5, 1.5]},
    "linear": {"normalize": [True, False]},
    "consensus_ta": {"agreement": [0, 3], "threshold": [0.0, 0.6]},
    "pcb": {"clamp": [0.0, 0.1]},
    "karcher": {"max_iter": [1, 20]},
    "multislerp": {"on": ["weights", "task_vectors"], "normalize": [True, False]},
    "nuslerp": {"flatten": [True, False], "row_wise": [True, False], "on": ["task_vectors", "weights"]},
    "slerp": {"on": ["task_vectors", "weights"]},
    "model_stock": {"row_wise": [True, False]},
    "ramplus_tl": {"r": [0.0, 0.5]},
    "sce": {"scale": [0.5, 1.5]},
    "nearswap": {"t": [0.0, 0.01]},
    "passthrough": {"scale": [0.5, 1.5]},
    "arcee_fusion": {"spread": [0.5, 3.0]},
    "tsv_m": {"scale": [0.5, 1.5]},
    "iso_c": {"scale": [0.5, 1.5]},
    "iso_cts": {"scale": [0.5, 1.5], "common_fraction": 0.5},
    "wudi": {"scale": [0.5, 1.5], "regularisation": 0.1},
}


def groups(depths=3, stacks=("",)):
    inside = [Group(kind, depth, stack) for stack in stacks for depth in range(depths) for kind in KINDS]
    return [Group("embedding"), Group("head"), Group("norm"), *inside]


def tensors_of(of):
    return {f"{str(group).replace('/', '.')}.{name}.weight": group for group in of for name in ("a", "b")}


def space(granularity="model", *, experts=EXPERTS, of=None, low=0.0, high=1.5, kinds=EVERY_KIND, **more):
    of = groups() if of is None else of
    return Space(
        base="base",
        sources=SOURCES,
        experts=experts,
        groups=of,
        granularity=granularity,
        kinds=kinds,
        coefficient=Bounds(low, high),
        **({"tensors": tensors_of(of)} if granularity == "tensor" else {}),
        **more,
    )


def fits(name, experts):
    needs = registry.get(name).needs
    return not needs.calibration and needs.minimum <= experts and (needs.maximum is None or experts <= needs.maximum)


@st.composite
def choices(draw, experts):
    name = draw(st.sampled_from([each for each in registry.BUILT_IN if fits(each, experts)]))
    parameters = PARAMETERS.get(name, {})
    kept = {each for each in parameters if each == "t" or draw(st.booleans())}
    return MethodChoice(name, {each: parameters[each] for each in parameters if each in kept})


@st.composite
def spaces(draw):
    experts = EXPERTS[: draw(st.integers(1, 3))]
    methods = draw(st.lists(choices(len(experts)), min_size=1, max_size=4, unique_by=lambda each: each.name))
    low = draw(st.sampled_from([0.0, -0.5, 0.2]))
    arguments = {
        "experts": experts,
        "of": groups(draw(st.integers(2, 5)), draw(st.sampled_from([("",), ("",), ("encoder", "decoder")]))),
        "low": low,
        "high": low + draw(st.sampled_from([1.0, 1.3])),
        "shared": draw(st.booleans()),
        "methods": methods,
        "method_blocks": draw(st.integers(1, 4)),
        "method_kinds": draw(st.booleans()),
        "kinds": draw(st.sampled_from([EVERY_KIND, [["attention", "norm"], ["mlp", "embedding", "head"]]])),
        "density": Bounds(*draw(st.sampled_from([(0.1, 1.0), (0.0, 0.5)]))),
        "shared_density": draw(st.booleans()),
        "normalize": draw(st.booleans()),
        "dtype": draw(st.sampled_from([None, "bfloat16"])),
    }
    granularity = draw(st.sampled_from(["model", "layer", "tensor", "lines", Knots(2), Knots(3), Knots(4), Blocks(2)]))
    try:
        return space(granularity, **arguments)
    except SpaceError as error:
        if "something that varies" in str(error):
            return space(granularity, **(arguments | {"methods": ["task_arithmetic"]}))
        assert "lines" in str(error)
        return space("model", **arguments)


@st.composite
def cases(draw):
    found = draw(spaces())
    gene = st.sampled_from([0.0, 0.25, 1 / 3, 0.5, 1.0]) | st.floats(0, 1)
    values = draw(st.lists(gene, min_size=found.box.continuous, max_size=found.box.continuous))
    return found, Genome(tuple(values), tuple(draw(st.integers(0, count - 1)) for count in found.box.categories))


MANY = settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.data_too_large, HealthCheck.too_slow]
)


@given(cases())
@MANY
def test_a_recipe_is_read_back_exactly(case):
    found, genome = case
    recipe = found.decode(genome)
    again = found.encode(recipe)
    assert again in found.box
    assert found.decode(again).hash == recipe.hash
    assert found.encode(Recipe.from_yaml(recipe.to_yaml())) == again


@given(cases())
@MANY
def test_the_canonical_genome_is_one_for_the_recipe(case):
    found, genome = case
    canonical_genome = found.canonical(genome)
    assert canonical_genome in found.box
    assert found.canonical(canonical_genome) == canonical_genome
    recipe = found.decode(genome)
    assert found.decode(canonical_genome).hash == recipe.hash


@given(cases())
@MANY
def test_a_gene_changes_the_recipe_unless_it_is_canonicalised_away(case):
    found, genome = case
    recipe, still = found.decode(genome), found.canonical(genome)
    for index in range(0, found.box.continuous, 1 + found.box.continuous // 12):
        values = list(genome.values)
        values[index] += -0.4 if values[index] > 0.5 else 0.4
        other = Genome(tuple(values), genome.categories)
        assert (found.canonical(other) == still) == (found.decode(other).hash == recipe.hash), found.genes[index]


@given(cases())
@settings(max_examples=50, deadline=None)
def test_every_assignment_is_one_that_merging_takes_and_spells_in_the_same_way(case):
    found, genome = case
    recipe = found.decode(genome)
    for assignment in {*recipe.groups.values(), *recipe.tensors.values()}:
        spelled = canonical(assignment)
        if spelled != assignment:  # where only the ratio of the coefficients acts, they stay as the genes give them
            ratios = assignment.method in {"slerp", "nuslerp", "multislerp", "karcher"}
            assert ratios
            assert [alias for alias, _ in spelled.sources] == [alias for alias, _ in assignment.sources]


@given(cases())
@settings(max_examples=50, deadline=None)
def test_genes_are_unique_and_named_values_lie_in_their_bounds(case):
    found, genome = case
    assert len(found.genes) == found.box.continuous + len(found.box.categories)
    assert [len(gene.choices) for gene in found.genes[found.box.continuous :]] == list(found.box.categories)
    named = found.named(genome)
    assert len(named) == len(found.genes)
    for gene in found.genes:
        if gene.bounds is None:
            assert named[gene.name] in gene.choices
        else:
            assert gene.bounds[0] - 1e-9 <= named[gene.name] <= gene.bounds[1] + 1e-9


def test_genes_of_a_rich_space_have_names_for_people():
    found = space(
        experts=("zeta", "mid"),
        methods=["task_arithmetic", MethodChoice("dare_ties", {"scale": [0.5, 2.0], "rescale": [True, False]})],
        method_blocks=2,
    )
    assert [gene.name for gene in found.genes] == [
        "zeta",
        "mid",
        "density.zeta@block0",
        "density.mid@block0",
        "density.zeta@block1",
        "density.mid@block1",
        "dare_ties.scale",
        "method@block0",
        "method@block1",
        "dare_ties.rescale",
    ]
    named = found.named(Genome((0.0, 1.0, 0.0, 1.0, 0.5, 0.5, 0.5), (0, 1, 1)))
    assert (named["zeta"], named["mid"]) == (0.0, 1.5)
    assert (named["density.zeta@block0"], named["density.mid@block0"]) == (7 / 64, 1.0)
    assert (named["dare_ties.scale"], named["method@block1"], named["dare_ties.rescale"]) == (1.25, "dare_ties", False)


def test_shared_genes_move_all_experts_alike():
    found = space(Knots(2), shared=True, shared_density=True, methods=["ties"])
    assert [gene.name for gene in found.genes][:3] == [
        "coefficient.attention@knot0",
        "coefficient.attention@knot1",
        "coefficient.mlp@knot0",
    ]
    assert found.genes[-1].name == "density"
    recipe = found.decode(Genome(tuple(np.linspace(0.1, 0.9, found.box.continuous))))
    table = found.table(recipe)
    assert table["zeta"] == table["alpha"] == table["mid"]
    assert len(set(table["mid"].values())) > 3
    with pytest.raises(SpaceError, match="share their coefficients"):
        found.uniform({"mid": 1.0})


def test_densities_lie_on_the_grid_and_reach_every_step():
    found = space(experts=("zeta",), methods=["ties"], density=Bounds(0.1, 0.3))
    shown = set()
    for gene in np.linspace(0, 1, 101):
        recipe = found.decode(Genome((0.5, float(gene))))
        shown |= set(found.densities(recipe)["zeta"].values())
    assert shown == {step / 64 for step in range(7, 20)}


def test_densities_and_methods_can_be_read_by_group():
    found = space(methods=["ties", "task_arithmetic", "sce"], method_blocks=3, density=Bounds(0.5, 1.0))
    values = [0.5] * found.box.continuous
    recipe = found.decode(Genome(tuple(values), (0, 1, 2)))
    methods = found.chosen_methods(recipe)
    assert [methods[Group("mlp", depth)] for depth in range(3)] == ["ties", "task_arithmetic", "sce"]
    densities = found.densities(recipe)["mid"]
    assert Group("mlp", 1) not in densities
    assert densities[Group("mlp", 0)] == densities[Group("mlp", 2)] == 48 / 64
    assert Group("mlp", 2) not in found.table(recipe)["mid"]


def test_a_method_with_one_density_for_all_sources_takes_the_first_experts():
    found = space(experts=("zeta", "mid"), methods=["sce", "ties"])
    densities = [index for index, gene in enumerate(found.genes) if gene.role == "density"]
    values = [0.4] * found.box.continuous
    values[densities[0]] = 1.0
    recipe = found.decode(Genome(tuple(values), (0,)))
    assert dict(recipe.groups[Group("head")].parameters)["density"] == 1.0
    still = found.canonical(Genome(tuple(values), (0,)))
    assert still.values[densities[1]] == 0.5
    assert still.values[:2] == (0.5, 0.5)


def test_inactive_genes_are_put_away():
    choice = MethodChoice("dare_ties", {"scale": [0.5, 2.0], "rescale": [True, False]})
    found = space(experts=("zeta", "mid"), methods=["task_arithmetic", choice])
    names = [gene.name for gene in found.genes]
    still = found.canonical(Genome((0.2, 0.0, 0.9, 0.9, 0.9), (0, 1)))
    assert dict(zip(names, (*still.values, *still.categories), strict=True)) == {
        "zeta": 0.2,
        "mid": 0.0,
        "density.zeta": 0.5,
        "density.mid": 0.5,
        "dare_ties.scale": 0.5,
        "method": 0,
        "dare_ties.rescale": 0,
    }
    active = found.canonical(Genome((0.2, 0.0, 0.9, 0.9, 0.9), (1, 1)))
    step = found.named(active)["density.zeta"]
    assert step == found.named(Genome((0.2, 0.0, 0.9, 0.9, 0.9), (1, 1)))["density.zeta"]
    assert active.values[3] == 0.5  # of an expert that is left out
    assert (active.values[4], active.categories) == (0.9, (1, 1))


def test_nothing_of_any_expert_has_no_method():
    found = space(experts=("zeta", "mid"), methods=["ties", "karcher", "magmax"])
    for method in range(3):
        genome = Genome((0.0, 0.0, 0.3, 0.3), (method,))
        assert set(found.decode(genome).groups.values()) == {
            Assignment.of("task_arithmetic", {}, normalize=False, scale=1.0)
        }
        assert found.canonical(genome) == Genome((0.0, 0.0, 0.5, 0.5), (0,))


@given(cases(), st.data())
@settings(max_examples=25, deadline=None)
def test_a_coefficient_per_expert_is_a_point_of_every_finer_space(case, data):
    """With its methods, densities and parameters: what the first stage learnt can be told to the second."""
    found, _ = case
    plain = {"experts": found.experts, "of": found.groups, "low": found.coefficient.low, "high": found.coefficient.high}
    methods = data.draw(st.lists(choices(len(found.experts)), min_size=1, max_size=3, unique_by=lambda each: each.name))
    arguments = plain | {"methods": ["task_arithmetic", *[each for each in methods if each.name != "task_arithmetic"]],
                         "method_blocks": data.draw(st.integers(1, 3)), "shared": found.shared}  # fmt: skip
    coarse = space("model", **arguments)
    values = tuple(data.draw(st.lists(st.floats(0, 1), min_size=coarse.box.continuous, max_size=coarse.box.continuous)))
    genome = Genome(values, tuple(data.draw(st.integers(0, count - 1)) for count in coarse.box.categories))
    recipe = coarse.decode(genome)
    for granularity in (Knots(1), Knots(3), Blocks(2), "layer", "tensor"):
        fine = space(granularity, **arguments)
        assert fine.decode(fine.encode(recipe)).hash == recipe.hash


def test_normalize_switches_on_what_is_off_by_default_and_nothing_else():
    methods = ["task_arithmetic", "dare_linear", "ties", "linear", MethodChoice("breadcrumbs", {"normalize": False})]
    found = space(methods=methods, normalize=True)
    for index, expected in enumerate([True, True, True, True, False]):
        recipe = found.decode(Genome((0.5,) * found.box.continuous, (index,)))
        assert dict(recipe.groups[Group("head")].parameters)["normalize"] is expected


def test_a_sum_of_zero_is_divided_by_only_where_the_method_does():
    cancelled = {"zeta": 0.5, "mid": -0.5}
    for methods, expected in (
        (["karcher"], "task_arithmetic"),
        (["ties"], "ties"),
        (["dare_linear"], "dare_linear"),
        ([MethodChoice("dare_linear", {"normalize": True})], "task_arithmetic"),
    ):
        found = space(experts=("zeta", "mid"), low=-1.0, high=1.0, methods=methods)
        recipe = found.decode(found.uniform(cancelled))
        assert recipe.groups[Group("head")].method == expected
        assert found.decode(found.encode(recipe)).hash == recipe.hash


def test_the_center_is_the_average_merge_of_the_first_method():
    for methods, expected in ((["task_arithmetic"], 1 / 3), (["ties"], 1.0), (["linear", "ties"], 1 / 3)):
        found = space(methods=methods)
        recipe = found.decode(found.center())
        assert set(found.chosen_methods(recipe).values()) == {methods[0]}
        assert list(found.table(recipe)["mid"].values()) == pytest.approx([expected] * len(found.groups))
    line = space("lines")
    assert list(line.table(line.decode(line.center()))["mid"].values()) == pytest.approx([1 / 3] * len(line.groups))
    narrow = space(low=0.5, high=0.9)
    assert narrow.named(narrow.center())["mid"] == 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"methods": [MethodChoice("ties", {"densty": 0.2})]}, "did you mean 'density'"),
        ({"methods": [MethodChoice("ties", {"density": 1.2})]}, r"\[0, 1\], found 1.2"),
        ({"methods": [MethodChoice("ties", {"scale": [2.0, 1.0]})]}, "low < high"),
        ({"methods": [MethodChoice("ties", {"rescale": [True, True]})]}, "different values"),
        ({"methods": [MethodChoice("ties", {"trim": ["tensor", "row"]})]}, "expected one of tensor, model"),
        ({"methods": [MethodChoice("ties", {"seed": [0.5, 2]})]}, "integer"),
        ({"methods": [MethodChoice("ties", {"coefficient": 1.0})]}, "genes already"),
        (
            {"methods": [MethodChoice("ties", {"trim": "model", "convention": ["paper", "mergekit"]})]},
            "tensor by tensor",
        ),
        ({"methods": ["nearswap"], "experts": ("zeta",)}, "nearswap needs t"),
        ({"methods": ["slerp"]}, "exactly two experts, found 3"),
        ({"methods": ["passthrough"]}, "exactly one expert, found 3"),
        ({"methods": ["model_stock"], "experts": ("zeta",)}, "at least two experts, found 1"),
        ({"methods": ["model_stock"]}, "something that varies"),
        ({"methods": ["ties"], "density": Bounds(0.2, 0.21)}, "two or more multiples of 1/64"),
        ({"methods": ["ties"], "density": Bounds(0.5, 1.5)}, "density in"),
        ({"methods": ["ram", "ties"], "method_blocks": 2, "granularity": "lines"}, "ram takes no coefficients"),
        ({"granularity": "lines", "of": [Group("embedding"), Group("head")], "kinds": []}, "two blocks or more"),
    ],
)
def test_spaces_that_contradict_their_methods_are_refused(arguments, message):
    with pytest.raises(SpaceError, match=message):
        space(**arguments)


def test_integers_are_integers():
    found = space(methods=[MethodChoice("dare_ties", {"seed": [2, 4], "density": 0.5})])
    seeds = {found.named(Genome((0.5, 0.5, 0.5, gene)))["dare_ties.seed"] for gene in np.linspace(0, 1, 31).tolist()}
    assert seeds == {2, 3, 4}
    assert all(isinstance(seed, int) for seed in seeds)
    recipe = found.decode(Genome((0.5, 0.5, 0.5, math.nextafter(1 / 3, 0))))
    assert dict(recipe.groups[Group("head")].parameters)["seed"] == 2


def test_what_stands_behind_plain_task_arithmetic_is_found():
    """Normalised, with coefficients that cancel: no other point of this space is plain task arithmetic."""
    parameters = {"normalize": [False, True], "scale": [0.5, 0.9]}
    found = space(experts=("zeta", "mid"), low=-1.0, high=1.0, methods=[MethodChoice("task_arithmetic", parameters)])
    recipe = found.decode(Genome((0.75, 0.25, 0.3), (1,)))
    assert dict(recipe.groups[Group("head")].parameters) == {"normalize": False, "scale": 1.0}
    assert found.encode(recipe) == Genome((0.75, 0.25, 0.5), (1,))
    refused = space(experts=("zeta", "mid"), low=-1.0, high=1.0, methods=["ties"])
    with pytest.raises(SpaceError, match="which none of them is"):
        refused.encode(recipe)


def test_what_a_method_leaves_out_is_one_genome():
    """Rows mean nothing to a tensor that is flattened."""
    parameters = {"flatten": [True, False], "row_wise": [True, False]}
    found = space(experts=("zeta", "mid"), methods=[MethodChoice("nuslerp", parameters)])
    flat = [Genome((0.5, 0.5), (0, row_wise)) for row_wise in range(2)]
    assert found.canonical(flat[0]) == found.canonical(flat[1])
    assert found.decode(flat[0]).hash == found.decode(flat[1]).hash
    by_vector = [Genome((0.5, 0.5), (1, row_wise)) for row_wise in range(2)]
    assert found.canonical(by_vector[0]) != found.canonical(by_vector[1])
    assert found.decode(by_vector[0]).hash != found.decode(by_vector[1]).hash
