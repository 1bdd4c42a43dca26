import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from merging.methods.registry import canonical
from merging.recipe import Assignment, Group, Recipe, SourceRef
from search.optimizers.contract import Genome
from search.space import Blocks, Bounds, Knots, Space, SpaceError

SOURCES = {alias: SourceRef(f"models/{alias}", f"sha256:{alias}") for alias in ("base", "string", "math", "code")}
OUTSIDE = [Group("embedding"), Group("head"), Group("norm")]
EVERY_KIND = [["attention"], ["mlp"], ["norm"], ["embedding"], ["head"]]


def groups(depths=5, kinds=("attention", "mlp", "norm")):
    return OUTSIDE + [Group(kind, depth) for depth in range(depths) for kind in kinds]


def space(granularity=Knots(3), *, experts=("string", "math"), of=None, kinds=EVERY_KIND, low=0.0, high=1.5, **more):  # noqa: B008
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


@st.composite
def cases(draw):
    depths = draw(st.integers(1, 7))
    experts = draw(st.sampled_from([("math",), ("string", "math"), ("string", "math", "code")]))
    methods = draw(
        st.sampled_from([("task_arithmetic",), ("linear",), ("task_arithmetic", "linear")])
        if len(experts) != 2
        else st.sampled_from([("slerp",), ("linear", "slerp", "task_arithmetic"), ("task_arithmetic",)])
    )
    low = draw(st.sampled_from([0.0, -0.5, 0.2]))
    found = space(
        draw(st.sampled_from(["model", "layer", Knots(1), Knots(2), Knots(3), Knots(9), Blocks(2), Blocks(9)])),
        experts=experts,
        of=groups(depths),
        kinds=draw(st.sampled_from([EVERY_KIND, [["attention", "embedding", "head"], ["mlp", "norm", "other"]]])),
        low=low,
        high=low + draw(st.sampled_from([1.0, 1.3, 2.0])),
        methods=methods,
        method_blocks=draw(st.integers(1, 3)),
        normalize=draw(st.booleans()),
    )
    gene = st.sampled_from([0.0, 0.25, 1 / 3, 0.5, 1.0]) | st.floats(0, 1)
    values = draw(st.lists(gene, min_size=found.box.continuous, max_size=found.box.continuous))
    return found, Genome(tuple(values), tuple(draw(st.integers(0, count - 1)) for count in found.box.categories))


@given(cases())
@settings(max_examples=80, deadline=None)
def test_encode_is_the_inverse_of_decode(case):
    found, genome = case
    recipe = found.decode(genome)
    again = found.encode(recipe)
    assert again in found.box
    assert found.decode(again).hash == recipe.hash
    assert found.encode(Recipe.from_yaml(recipe.to_yaml())) == again


@given(cases())
@settings(max_examples=30, deadline=None)
def test_a_recipe_says_something_for_every_group_and_says_it_canonically(case):
    found, genome = case
    recipe = found.decode(genome)
    assert set(recipe.groups) == set(found.groups)
    for assignment in recipe.groups.values():
        if assignment.method == "slerp":  # its canonical form keeps the ratio of the coefficients only
            canonical(assignment)
        else:
            assert canonical(assignment) == assignment


@given(cases(), st.floats(0, 1), st.floats(0, 1))
@settings(max_examples=30, deadline=None)
def test_equal_genes_are_the_same_recipe_at_every_granularity(case, one, two):
    found, _ = case
    low, high = found.coefficient.low, found.coefficient.high
    coefficients = {name: low + (high - low) * gene for name, gene in zip(found.experts, (one, two, one), strict=False)}
    arguments = {"experts": found.experts, "of": found.groups, "low": low, "high": high, "methods": found.methods[:1]}
    model = space("model", **arguments)
    expected = model.decode(model.uniform(coefficients)).hash
    for granularity in (Knots(1), Knots(3), Blocks(2), "layer"):
        fine = space(granularity, **arguments)
        genome = fine.uniform(coefficients)
        assert fine.decode(genome).hash == expected
        assert fine.encode(model.decode(model.uniform(coefficients))) in fine.box


def test_a_coarse_recipe_is_a_point_of_a_finer_space_and_not_the_other_way_round():
    coarse, fine = space("model"), space(Knots(3))
    recipe = coarse.decode(Genome((0.123456789, 0.7)))
    assert fine.decode(fine.encode(recipe)).hash == recipe.hash
    bent = fine.decode(Genome(tuple(np.linspace(0, 1, fine.box.continuous).tolist())))
    with pytest.raises(SpaceError, match="not a point of this space"):
        coarse.encode(bent)


def test_interpolation_at_known_values():
    one = space(Knots(3), experts=("math",), kinds=[["attention", "mlp", "norm", "embedding", "head"]], high=1.0)
    assert one.box.continuous == 3
    table = one.table(one.decode(Genome((0.0, 1.0, 0.5))))["math"]
    for depth, expected in enumerate([0.0, 0.5, 1.0, 0.75, 0.5]):
        assert {table[Group(kind, depth)] for kind in ("attention", "mlp", "norm")} == {expected}
    assert (table[Group("embedding")], table[Group("head")], table[Group("norm")]) == (0.0, 0.5, 0.5)


def test_knots_lie_on_depths_and_are_no_more_than_there_are():
    many = space(Knots(99), experts=("math",), kinds=[["attention", "mlp", "norm", "embedding", "head"]])
    assert [gene.depth for gene in many.genes] == [0, 1, 2, 3, 4]
    uneven = space(Knots(4), experts=("math",), kinds=[["attention", "mlp", "norm", "embedding", "head"]])
    assert [gene.depth for gene in uneven.genes] == [0, 1, 3, 4]


def test_blocks_are_nearly_equal_runs():
    one = space(Blocks(2), experts=("math",), kinds=[["attention", "mlp", "norm", "embedding", "head"]], high=1.0)
    table = one.table(one.decode(Genome((0.25, 0.75))))["math"]
    assert [table[Group("mlp", depth)] for depth in range(5)] == [0.25, 0.25, 0.25, 0.75, 0.75]


def test_genes_are_named_for_people():
    names = [gene.name for gene in space(Knots(2), experts=("math",), methods=("linear", "task_arithmetic")).genes]
    assert names == [
        "math.attention@knot0",
        "math.attention@knot1",
        "math.mlp@knot0",
        "math.mlp@knot1",
        "math.norm@knot0",
        "math.norm@knot1",
        "math.embedding",
        "math.head",
        "method",
    ]
    assert [gene.name for gene in space("model").genes] == ["string", "math"]


@given(cases())
@settings(max_examples=20, deadline=None)
def test_there_is_one_uniquely_named_gene_per_number_and_each_has_an_effect(case):
    found, genome = case
    coefficients = [gene for gene in found.genes if gene.role == "coefficient"]
    assert (len(coefficients), len(found.genes) - len(coefficients)) == (
        found.box.continuous,
        len(found.box.categories),
    )
    assert len({gene.name for gene in found.genes}) == len(found.genes)
    before = found.decode(genome).hash
    for index in range(found.box.continuous):
        values = list(genome.values)
        values[index] = values[index] - 0.25 if values[index] > 0.5 else values[index] + 0.25
        assert found.decode(Genome(tuple(values), genome.categories)).hash != before


def test_stacks_have_tracks_and_methods_of_their_own():
    of = [Group("embedding"), Group("head")]
    of += [Group("attention", depth, stack) for stack in ("encoder", "decoder") for depth in range(3)]
    found = space(Knots(2), experts=("math",), of=of, methods=("task_arithmetic", "linear"), method_blocks=2)
    names = [gene.name for gene in found.genes]
    assert "math.encoder/attention@knot1" in names
    assert names[-4:] == [
        "method@decoder/block0",
        "method@decoder/block1",
        "method@encoder/block0",
        "method@encoder/block1",
    ]
    recipe = found.decode(Genome((1.0,) * found.box.continuous, (0, 0, 0, 1)))
    assert recipe.groups[Group("attention", 2, "encoder")].method == "linear"
    assert recipe.groups[Group("head")].method == "linear"
    assert recipe.groups[Group("attention", 2, "decoder")].method == "task_arithmetic"
    assert found.encode(recipe).categories == (0, 0, 0, 1)


def test_the_method_of_a_block_reaches_what_lies_outside():
    found = space("model", methods=("task_arithmetic", "linear"), method_blocks=2)
    recipe = found.decode(Genome((0.5, 0.5), (0, 1)))
    methods = {str(group): assignment.method for group, assignment in recipe.groups.items()}
    assert (methods["embedding"], methods["mlp.2"], methods["mlp.3"], methods["norm"]) == (
        "task_arithmetic",
        "task_arithmetic",
        "linear",
        "linear",
    )


@pytest.mark.parametrize("method", ["linear", "slerp", "task_arithmetic"])
def test_nothing_of_any_expert_is_the_base_whatever_the_method(method):
    found = space("model", methods=(method,), normalize=True)
    recipe = found.decode(found.uniform({}))
    assert set(recipe.groups.values()) == {Assignment.of("task_arithmetic", {}, normalize=False, scale=1.0)}
    assert found.decode(found.encode(recipe)).hash == recipe.hash


def test_coefficients_that_cancel_are_not_divided_by():
    found = space("model", methods=("linear",), low=-1.0, high=1.0)
    assignment = found.decode(found.uniform({"string": 0.5, "math": -0.5})).groups[Group("head")]
    assert assignment.method == "task_arithmetic"
    assert dict(assignment.parameters) == {"normalize": False, "scale": 1.0}


def test_the_spelling_of_each_method():
    found = space("model", methods=("task_arithmetic", "linear", "slerp"), normalize=True)
    spelled = [
        found.decode(found.uniform({"string": 1.0, "math": 0.5}, method)).groups[Group("head")]
        for method in found.methods
    ]
    both = {"math": {"coefficient": 0.5}, "string": {"coefficient": 1.0}}
    assert spelled == [
        Assignment.of("task_arithmetic", both, normalize=True, scale=1.0),
        Assignment.of("linear", both, normalize=True),
        Assignment.of("slerp", {"string": {"coefficient": 1.0}, "math": {"coefficient": 0.5}}),
    ]


def test_uniform_covers_the_baselines_and_refuses_what_lies_outside():
    found = space("layer", high=1.0)
    for coefficients in ({}, {"math": 1.0}, {"math": 0.5, "string": 0.5}, {"math": 0.3, "string": 0.3}):
        table = found.table(found.decode(found.uniform(coefficients)))
        for expert in found.experts:
            assert set(table[expert].values()) == {coefficients.get(expert, 0.0)}
    with pytest.raises(SpaceError, match=r"\[0, 1\], found 1.1"):
        found.uniform({"math": 1.1})
    with pytest.raises(SpaceError, match="did you mean 'math'"):
        found.uniform({"meth": 1.0})
    with pytest.raises(SpaceError, match="method"):
        found.uniform({}, method="ties")


def recipe_with(change):
    recipe = space("model").decode(Genome((0.5, 0.5)))
    everything = {"base": "base", "sources": SOURCES, "groups": dict(recipe.groups), "tensors": {}, "dtype": None}
    change(everything)
    return Recipe(**everything)


@pytest.mark.parametrize(
    "change",
    [
        lambda recipe: recipe["groups"].pop(Group("head")),
        lambda recipe: recipe["groups"].update({Group("mlp", 9): recipe["groups"][Group("head")]}),
        lambda recipe: recipe["tensors"].update({"a.weight": recipe["groups"][Group("head")]}),
        lambda recipe: recipe.update(dtype="bfloat16"),
        lambda recipe: recipe["groups"].update({Group("head"): Assignment.of("ties", {"math": {"coefficient": 0.5}})}),
        lambda recipe: recipe["groups"].update(
            {Group("head"): Assignment.of("task_arithmetic", {"code": {"coefficient": 1}})}
        ),
        lambda recipe: recipe["groups"].update(
            {Group("head"): Assignment.of("task_arithmetic", {"math": {"density": 0.5}})}
        ),
        lambda recipe: recipe["groups"].update(
            {Group("head"): recipe["groups"][Group("head")].of("linear", {"math": {"coefficient": 0.5}})}
        ),
    ],
)
def test_recipes_from_elsewhere_are_refused(change):
    with pytest.raises(SpaceError):
        space("model").encode(recipe_with(change))


def test_experts_are_known_by_their_content():
    recipe = space("model").decode(Genome((0.5, 0.25)))
    renamed = recipe.with_sources({alias: SourceRef("elsewhere", ref.content) for alias, ref in recipe.sources.items()})
    assert space("model").encode(renamed) == Genome((0.5, 0.25))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kinds": [["attention"]]}, "found no set for mlp, norm, embedding, head"),
        ({"kinds": [*EVERY_KIND, ["mlp"]]}, "one kind set only"),
        ({"kinds": [["atention"]]}, "did you mean 'attention'"),
        ({"experts": ("math", "math")}, "different experts"),
        ({"experts": ()}, "experts"),
        ({"experts": ("base", "math")}, "beside the base"),
        ({"experts": ("physics",)}, "source"),
        ({"methods": ("linaer",)}, "did you mean 'linear'"),
        ({"methods": ()}, "methods"),
        ({"methods": ("slerp",), "experts": ("math",)}, "exactly two experts"),
        ({"method_blocks": 0}, "method_blocks"),
        ({"granularity": Knots(0)}, "at least one knot"),
        ({"of": []}, "groups"),
        ({"low": 1.0, "high": 1.0}, "low < high"),
    ],
)
def test_spaces_that_contradict_themselves_are_refused(arguments, message):
    with pytest.raises(SpaceError, match=message):
        space(**arguments)


@pytest.mark.parametrize(
    "genome", [Genome((0.5,)), Genome((0.5, 1.5)), Genome((0.5, 0.5), (0,)), Genome((0.5, float("nan")))]
)
def test_genomes_outside_the_box_are_refused(genome):
    with pytest.raises(SpaceError, match="expected a genome"):
        space("model").decode(genome)


THREE = ("task_arithmetic", "linear", "slerp")


@pytest.mark.parametrize(
    ("granularity", "arguments", "values", "expected"),
    [
        ("model", {}, 2, "47c22beed058c966"),
        (Knots(3), {"low": -0.5}, 22, "16e7adb53388051b"),
        ("layer", {"methods": ("linear",)}, 34, "d95495c92777f093"),
        (Blocks(2), {"methods": THREE, "method_blocks": 2}, 16, "b2774b6fc95f909d"),
        (Knots(4), {"methods": ("slerp",), "dtype": "bfloat16"}, 28, "3a5b94257c044072"),
        (Knots(2), {"normalize": True, "experts": ("string", "math", "code")}, 24, "6ab6452cf8e1f0ef"),
    ],
)
def test_genomes_of_the_first_release_are_the_recipes_that_they_were(granularity, arguments, values, expected):
    """Hashes that version 0.1.0 computed: stored runs are decoded by them."""
    found = space(granularity, **arguments)
    assert found.box.continuous == values
    genome = Genome(
        tuple((index + 1) / (values + 1) for index in range(values)), tuple(range(len(found.box.categories)))
    )
    assert found.decode(genome).hash[:16] == expected
