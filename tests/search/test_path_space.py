from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from merging.methods import canonical
from merging.recipe import Assignment, Group, Recipe, SourceRef
from search.optimizers.contract import Genome
from search.space import Bounds, Hop, KnownPaths, PathSpace, SpaceError, outside_of, path_of
from search.space.path_genes import INCLUDED, LEFT_OUT, ScaleGene
from search.space.path_order import keys_of, shift_gene, shifted

SOURCES = {alias: SourceRef(f"models/{alias}", f"sha256:{alias}") for alias in ("base", "a", "b", "c")}


def groups(layers=4):
    outside = [Group("embedding"), Group("head"), Group("norm")]
    return outside + [Group(kind, layer) for layer in range(layers) for kind in ("attention", "mlp", "norm")]


def space(*, models=("a", "b"), layers=4, scales=Bounds(0.4, 1.5), **more):  # noqa: B008
    return PathSpace(base="base", sources=SOURCES, models=models, groups=groups(layers), scales=scales, **more)


def genome(of, included=(), scales=(), **moved):
    """A genome of named genes; what is not named is left out, and has a scale of 1."""
    values = [LEFT_OUT if gene.role == "include" else 0.5 for gene in of.genes[: of.box.continuous]]
    choices = [0] * len(of.box.categories)
    for place, gene in enumerate(of.genes):
        wanted = gene.name.removeprefix("include[").removesuffix("]") in included
        if gene.role == "include" and wanted and place < of.box.continuous:
            values[place] = INCLUDED
        elif gene.role == "include" and wanted:
            choices[place - of.box.continuous] = 1
    for name, value in [*dict(scales).items(), *moved.get("shifts", {}).items()]:
        values[[gene.name for gene in of.genes].index(name)] = value
    return Genome(tuple(values), tuple(choices))


def hops(recipe):
    return [(hop.alias, hop.layer) for hop in path_of(recipe)]


@st.composite
def spaces(draw):
    scales = draw(st.sampled_from([None, Bounds(0.4, 1.5), Bounds(0.9, 2.0)]))
    return space(
        models=draw(st.sampled_from([("a", "b"), ("b", "a", "c"), ("a",), ("base", "a")])),
        layers=draw(st.integers(2, 5)),
        scales=scales,
        repetitions=draw(st.integers(2, 3)),
        arrangement=draw(st.sampled_from(["models", "layers"])),
        shift=draw(st.sampled_from([0, 0, 1, 3, 20])),
        scale_per=draw(st.sampled_from(["hop", "pair"])),
        ends=draw(st.sampled_from(["fixed", "free"])),
        depth=draw(st.sampled_from([None, 3, 6] if scales is None else [None, 2, 3, 6])),
        indicators=draw(st.sampled_from(["threshold", "choice"])),
    )


@st.composite
def cases(draw):
    found = draw(spaces())
    seed = draw(st.randoms(use_true_random=False))
    likely = draw(st.sampled_from([0.1, 0.5, 0.9]))
    special = (0.0, 0.5, 1.0)
    values = tuple(
        seed.choice(special) if seed.random() < 0.2 else min(1.0, seed.random() * 2 * likely)
        for _ in range(found.box.continuous)
    )
    return found, Genome(values, tuple(int(seed.random() < likely) for _ in found.box.categories))


@given(cases())
@settings(max_examples=60, deadline=None)
def test_every_genome_is_a_path_and_canonical_genomes_stand_for_one_path_each(case):
    found, given_genome = case
    recipe = found.decode(given_genome)
    settled = found.canonical(given_genome)
    assert found.decode(settled).hash == recipe.hash
    assert found.canonical(settled) == settled == found.encode(recipe)
    path = path_of(recipe)
    assert 1 <= len(path) <= found.depth
    assert outside_of(recipe) == found.models[0]
    assert {hop.alias for hop in path} <= set(found.models)


@given(cases())
@settings(max_examples=40, deadline=None)
def test_ends_that_are_fixed_hold_and_each_layer_comes_as_often_as_there_are_repetitions(case):
    found, given_genome = case
    path = hops(found.decode(given_genome))
    assert all(path.count(each) <= 1 + max(slot.repetition for slot in found.slots) for each in path)
    if len(found._genes.fixed) == 2:
        assert path[0] == (found.models[0], 0) and path[-1] == (found.models[0], found.layers - 1)


@given(cases(), st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_genes_without_effect_do_not_reach_the_recipe(case, random):
    found, given_genome = case
    on = set(found.included(given_genome))
    values = list(given_genome.values)
    for place, gene in enumerate(found.genes[: found.box.continuous]):
        own = next((i for i, slot in enumerate(found.slots) if gene.name.endswith(f"[{slot}]")), None)
        if gene.role != "include" and own is not None and own not in on:
            values[place] = random.random()
    other = replace(given_genome, values=tuple(values))
    assert found.decode(other).hash == found.decode(given_genome).hash
    assert found.canonical(other) == found.canonical(given_genome)


def test_slots_run_over_all_models_repetition_by_repetition():
    assert [str(each) for each in space(layers=2, repetitions=2).slots] == [
        "r0 a.0", "r0 a.1", "r0 b.0", "r0 b.1", "r1 a.0", "r1 a.1", "r1 b.0", "r1 b.1",
    ]  # fmt: skip
    assert [str(each) for each in space(layers=2, repetitions=1, arrangement="layers").slots] == [
        "r0 a.0", "r0 b.0", "r0 a.1", "r0 b.1",
    ]  # fmt: skip


def test_included_slots_are_the_path_in_their_order_with_their_scales():
    found = space(repetitions=2)
    point = genome(found, ["r0 a.1", "r0 b.2", "r1 a.1"], {"scale[r0 b.2]": 1.0, "scale[r0 a.0]": 0.25})
    assert path_of(found.decode(point)) == (
        Hop("a", 0, 0.7), Hop("a", 1), Hop("b", 2, 1.5), Hop("a", 1), Hop("a", 3),
    )  # fmt: skip
    named = found.named(point)
    assert named["include[r0 b.2]"] is True and named["include[r0 b.1]"] is False
    assert named["scale[r0 a.0]"] == 0.7 and named["scale[r1 b.0]"] == 1.0


def test_a_path_of_scales_1_is_spelled_without_scales_and_is_the_model_itself():
    found = space()
    recipe = found.decode(found.center())
    assert recipe.scales is None
    assert hops(recipe) == [("a", layer) for layer in range(4)]
    assert recipe.hash == space(scales=None, shift=2).decode(space(scales=None, shift=2).center()).hash
    take = canonical(Assignment.of("passthrough", {"a": {}}))
    assert set(recipe.groups.values()) == {take} and Group("head") in recipe.groups


def test_a_path_is_read_back_from_its_recipe_in_a_file():
    found = space(models=("b", "a", "c"), repetitions=2)
    point = genome(found, ["r0 a.1", "r0 c.2", "r1 c.2"], {"scale[r0 c.2]": 0.123, "scale[r0 b.3]": 0.9})
    recipe = found.decode(point)
    again = Recipe.from_yaml(recipe.to_yaml())
    assert again.hash == recipe.hash and path_of(again) == path_of(recipe)
    assert found.encode(again) == found.canonical(point)


def test_a_scale_of_a_pair_belongs_to_every_hop_of_it():
    found = space(scale_per="pair", repetitions=3)
    assert found.box.continuous == 22 + 8 * 8
    point = genome(found, ["r0 a.1", "r0 b.1", "r1 a.1", "r1 b.1", "r2 b.1"], {"scale[a.1 > b.1]": 0.0})
    # the first hop has nothing before it, and so no scale
    assert [hop.scale for hop in path_of(found.decode(point))] == [1.0, 1.0, 0.4, 1.0, 0.4, 1.0, 1.0]
    with pytest.raises(SpaceError, match="not a point"):
        found.encode(found._writer.recipe([Hop("a", 0, 0.5), Hop("a", 3)], "a"))


@pytest.mark.parametrize("indicators", ["threshold", "choice"])
def test_beyond_the_depth_the_least_sure_slots_are_left_out_or_the_last(indicators):
    found = space(repetitions=2, depth=4, indicators=indicators)
    point = genome(found, ["r0 a.1", "r0 b.1", "r0 b.2", "r1 a.2"])
    if indicators == "choice":
        assert hops(found.decode(point)) == [("a", 0), ("a", 1), ("b", 1), ("a", 3)]
        return
    sure = dict.fromkeys(["include[r0 a.1]", "include[r1 a.2]"], 0.9)
    assert hops(found.decode(genome(found, ["r0 b.1", "r0 b.2"], sure))) == [("a", 0), ("a", 1), ("a", 2), ("a", 3)]
    assert hops(found.decode(point)) == [("a", 0), ("a", 1), ("b", 1), ("a", 3)]  # of equals, the earlier


@pytest.mark.parametrize("indicators", ["threshold", "choice"])
def test_nothing_between_fixed_ends_is_a_path_and_nothing_at_all_is_not(indicators):
    fixed = space(indicators=indicators)
    assert hops(fixed.decode(genome(fixed))) == [("a", 0), ("a", 3)]
    free = space(ends="free", indicators=indicators)
    assert hops(free.decode(genome(free))) == [("a", 0)]


def test_shifted_slots_change_places_and_come_back_from_the_recipe():
    found = space(repetitions=1, shift=2)
    swapped = found.decode(genome(found, ["r0 a.1", "r0 a.2"], shifts={"shift[r0 a.1]": 1.0, "shift[r0 a.2]": 0.0}))
    assert hops(swapped) == [("a", 0), ("a", 2), ("a", 1), ("a", 3)]
    settled = found.encode(swapped)
    assert found.decode(settled).hash == swapped.hash
    with pytest.raises(SpaceError, match="no slot left that could stand there"):
        space(repetitions=1).encode(swapped)
    # 2 * shift - 1 places is as far as one slot can come behind another
    far = found._writer.recipe([Hop("a", 0), Hop("b", 3), Hop("a", 1), Hop("a", 3)], "a")
    with pytest.raises(SpaceError, match="no slot left"):
        found.encode(far)


@given(st.permutations(range(8)), st.sets(st.integers(0, 7), min_size=1))
@settings(max_examples=200, deadline=None)
def test_keys_bring_slots_into_an_order_with_the_smallest_moves(order, chosen):
    order = [slot for slot in order if slot in chosen]
    keys = keys_of(order)
    needed = max((one - two for place, two in enumerate(order) for one in order[:place]), default=0)
    shift = max(1, (needed + 2) // 2)
    assert all(abs(keys[slot] - slot) <= shift for slot in order)
    genes = {slot: shift_gene(keys[slot] - slot, shift) for slot in order}
    assert shifted(sorted(order), genes, shift) == order
    assert all(keys[slot] == slot for slot in order) or order != sorted(order)


@given(st.floats(0, 1))
def test_half_a_scale_gene_is_1_and_every_scale_has_its_gene(gene):
    scale = ScaleGene(Bounds(0.4, 1.5))
    assert scale.value(0.5) == 1.0 and scale.value(0.0) == 0.4 and scale.value(1.0) == 1.5
    value = scale.value(gene)
    assert scale.value(scale.gene(value)) == value and abs(scale.gene(value) - gene) < 1e-9


def test_the_center_is_clearly_model_a():
    found = space()
    center = found.center()
    first = {f"include[r0 a.{layer}]" for layer in (1, 2)}
    for gene, value in zip(found.genes, center.values, strict=True):
        wanted = 0.5 if gene.role == "scale" else 0.5 + 2 / 6 if gene.name in first else 0.5 - 2 / 6
        assert value == pytest.approx(wanted)
    assert found.canonical(center) == center
    chosen = space(indicators="choice")
    assert chosen.decode(chosen.center()).hash == found.decode(center).hash
    assert 0.9 < chosen.sure < 1.0 and found.sure is None


def test_paths_of_other_spaces_are_told_apart():
    found = space()
    other = space(models=("b", "a"))
    with pytest.raises(SpaceError, match="expected a outside the layers"):
        found.encode(other.decode(other.center()))
    free = space(ends="free")
    with pytest.raises(SpaceError, match=r"from layer 0 of a to its layer 3, found layer 1 of a"):
        found.encode(free._writer.recipe([Hop("a", 1), Hop("a", 3)], "a"))
    with pytest.raises(SpaceError, match="at most 8 layers, found 9"):
        found.encode(free._writer.recipe([Hop("a", layer % 4) for layer in (0, 1, 2, 3, 1, 2, 3, 1, 3)], "a"))
    with pytest.raises(SpaceError, match=r"expected a number in \[1, 1.5\], found 1.9"):
        found.encode(free._writer.recipe([Hop("a", 0, 1.9), Hop("a", 3)], "a"))
    merged = Recipe("base", SOURCES, dict.fromkeys(groups(), Assignment.of("linear", {"a": {}, "b": {}})))
    with pytest.raises(SpaceError, match="a recipe that merges weights"):
        path_of(merged)


def test_known_paths_are_chosen_by_name_and_equal_ones_are_one():
    plain = tuple(Hop("b", layer) for layer in range(4))
    known = KnownPaths(
        base="base", sources=SOURCES, groups=groups(),
        paths={"b": ("b", plain), "b again": ("b", plain), "b with a around it": ("a", plain)},
    )  # fmt: skip
    assert known.names == ("b", "b with a around it") and known.box.categories == (2,)
    for label, point in known.points:
        assert known.named(point) == {"path": label}
        assert known.encode(known.decode(point)) == point == known.canonical(point)
    assert [outside_of(known.decode(point)) for _, point in known.points] == ["b", "a"]
    with pytest.raises(SpaceError, match="none of the paths"):
        known.encode(space().decode(space().center()))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"models": ("a", "a")}, "different models"),
        ({"models": ("a", "d")}, "found 'd'"),
        ({"depth": 1}, "a depth of at least 2"),
        ({"layers": 1}, "no first and last one"),
        ({"scales": Bounds(1.0, 1.5)}, "0 < low < 1 < high"),
        ({"models": ("a",), "layers": 2, "repetitions": 1, "scales": None}, "nothing between them"),
        ({"depth": 2, "scales": None}, "nothing between them; a larger depth"),
    ],
)
def test_spaces_that_contradict_themselves_are_refused(more, message):
    with pytest.raises(SpaceError, match=message):
        space(**more)


def test_models_with_several_stacks_or_none_have_no_paths():
    two = [Group(kind, layer, stack) for stack in ("encoder", "decoder") for kind in ("mlp",) for layer in (0, 1)]
    for found in (two, [Group("embedding")]):
        with pytest.raises(SpaceError, match="one stack of layers"):
            PathSpace(base="base", sources=SOURCES, models=("a",), groups=found)
