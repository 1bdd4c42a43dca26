"""Recipes as mergekit configs: the same merge, written short, or a clear refusal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from adapter_folders import write_adapter_folder, write_base
from golden import GOLDEN
from hypothesis import given, settings
from hypothesis import strategies as st

from merging.checkpoint import Checkpoint
from merging.configs import read_config
from merging.export import export
from merging.mergekit_export import to_mergekit
from merging.mergekit_filters import Stated, compact
from merging.mergekit_values import evaluate, position_of
from merging.methods.registry import canonical_recipe
from merging.opening import open_model
from merging.recipe import Assignment, Group, MergingError, Recipe
from merging.restack import restack
from merging.sources import Sources
from merging.vectors.equip import equip
from merging.vectors.extract import About, write_vector

INPUTS = GOLDEN / "inputs"


@pytest.fixture(scope="module")
def sources() -> Sources:
    return Sources.load(INPUTS / "base", {name: INPUTS / name for name in ("ft1", "ft2", "ft3")})


def recipe_of(
    sources: Sources, assignment: Assignment, exceptions: Mapping[str, Assignment] | None = None, **more: Any
) -> Recipe:
    view = restack(sources, more.get("layers"))
    groups = dict.fromkeys(view.layout.groups, assignment)
    tensors: dict[str, Assignment] = {}
    for key, each in (exceptions or {}).items():
        if "weight" in key:
            tensors[key] = each
        else:
            groups |= {group: each for group in groups if key in {str(group), group.kind}}
    return canonical_recipe(Recipe("base", sources.refs, groups, tensors, dtype="float32", **more))


def ta(**coefficients: float) -> Assignment:
    return Assignment.of("task_arithmetic", {alias: {"coefficient": c} for alias, c in coefficients.items()})


def there_and_back(recipe: Recipe, sources: Sources, folder: Path) -> tuple[Any, Recipe]:
    """(the YAML as data, what importing it gives); the two recipes have one hash."""
    text = to_mergekit(recipe, sources)
    (folder / "mergekit.yaml").write_text(text)
    again, _ = read_config(folder / "mergekit.yaml")
    assert again.hash == recipe.hash
    return yaml.safe_load(text), again


def path(name: str) -> str:
    return str(INPUTS / name)


def test_one_assignment_is_a_plain_config(sources: Sources, tmp_path: Path) -> None:
    data, _ = there_and_back(recipe_of(sources, ta(ft1=0.5, ft3=-1.0)), sources, tmp_path)
    assert data == {
        "merge_method": "task_arithmetic",
        "base_model": path("base"),
        "models": [
            {"model": path("ft1"), "parameters": {"weight": 0.5}},
            {"model": path("ft3"), "parameters": {"weight": -1.0}},
        ],
        "dtype": "float32",
    }


def test_kinds_are_filters_and_depth_is_a_gradient(sources: Sources, tmp_path: Path) -> None:
    exceptions = {f"mlp.{depth}": ta(ft1=depth / 8, ft2=0.5) for depth in range(4)}
    exceptions |= {"attention": ta(ft1=0.75, ft2=0.5), "embedding": ta(ft1=0.125, ft2=0.5)}
    data, _ = there_and_back(recipe_of(sources, ta(ft1=1.0, ft2=0.5), exceptions), sources, tmp_path)
    first, second = (model["parameters"]["weight"] for model in data["models"])
    assert second == 0.5
    assert {rule.get("filter"): rule["value"] for rule in first} == {
        "mlp": [0.0, 0.125, 0.25, 0.375],
        "self_attn": 0.75,
        "embed_tokens": 0.125,
        None: 1.0,
    }


def test_single_tensors_are_named_in_full_only_where_they_differ(sources: Sources, tmp_path: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    data, again = there_and_back(recipe_of(sources, ta(ft1=1.0), {name: ta(ft1=0.25)}), sources, tmp_path)
    assert again.tensors.keys() == {name} and len(yaml.safe_dump(data).splitlines()) < 20


def test_models_that_are_missing_in_places_have_weight_0_there(sources: Sources, tmp_path: Path) -> None:
    data, _ = there_and_back(recipe_of(sources, ta(ft1=1.0), {"mlp": ta(ft2=0.5)}), sources, tmp_path)
    assert {rule.get("filter"): rule["value"] for rule in data["models"][1]["parameters"]["weight"]} == {
        "mlp": 0.5,
        None: 0.0,
    }


def test_the_base_alone(sources: Sources, tmp_path: Path) -> None:
    data, _ = there_and_back(recipe_of(sources, ta()), sources, tmp_path)
    assert data["models"] == [{"model": path("base")}]


def test_other_models_in_other_blocks_are_slices(sources: Sources, tmp_path: Path) -> None:
    copy = {alias: Assignment.of("passthrough", {alias: {}}) for alias in ("ft1", "ft2")}
    exceptions = {f"{kind}.{depth}": copy["ft2"] for kind in ("attention", "mlp", "norm") for depth in (2, 3)}
    exceptions |= {"norm": copy["ft2"], "head": copy["ft2"]}
    for depth in range(2):
        exceptions[f"norm.{depth}"] = copy["ft1"]
    data, again = there_and_back(recipe_of(sources, copy["ft1"], exceptions), sources, tmp_path)
    assert again.layers is None
    assert data["slices"] == [
        {"sources": [{"model": path("ft1"), "layer_range": [0, 2]}]},
        {"sources": [{"model": path("ft2"), "layer_range": [2, 4]}]},
    ]
    assert data["base_model"] == path("base")  # not merged: config and tokenizer are its own
    wrong = recipe_of(sources, copy["ft1"], {"mlp": copy["ft2"]})
    with pytest.raises(MergingError, match="all tensors of a block from the same models"):
        to_mergekit(wrong, sources)
    with pytest.raises(MergingError, match=r"merges model\.embed_tokens\.weight from the models of the first slice"):
        to_mergekit(recipe_of(sources, copy["ft1"], {"embedding": copy["ft2"]}), sources)


@pytest.mark.parametrize("method", ["ties", "linear", "slerp"])
def test_stacks_are_slices_of_any_method(method: str, sources: Sources, tmp_path: Path) -> None:
    values = {"coefficient": 0.5} | ({"density": 0.5} if method == "ties" else {})
    aliases = ("base", "ft1") if method == "slerp" else ("ft1", "ft2")
    convention = {"convention": "mergekit"} if method == "ties" else {}
    reads_base = {"base": (0, 1, 1, 3)} if method != "linear" else {}
    spans: dict[str, tuple[int, ...]] = dict.fromkeys(aliases, (0, 1, 1, 2)) | reads_base
    layers = tuple({alias: span[block] for alias, span in spans.items()} for block in range(4))
    mixed = Assignment.of(method, dict.fromkeys(aliases, values), **convention)
    recipe = recipe_of(sources, mixed, layers=layers)
    if method == "linear":
        data = yaml.safe_load(to_mergekit(recipe, sources))
        assert data["base_model"] == path("base")
    else:
        data, again = there_and_back(recipe, sources, tmp_path)
        assert again.layers == layers
    listed = [[(each["model"], each["layer_range"]) for each in entry["sources"]] for entry in data["slices"]]
    assert [ranges[-1][1] for ranges in listed] == (
        [[0, 2], [1, 3]] if method == "linear" else [[0, 2], [1, 2], [2, 3]]
    )


DTYPES = [
    (torch.float32, None, None, {}),
    (torch.float32, "bfloat16", None, {"dtype": "float32", "out_dtype": "bfloat16"}),
    (torch.float32, "bfloat16", "bfloat16", {"dtype": "bfloat16"}),
    (torch.float32, "float32", "float16", {"dtype": "float16", "out_dtype": "float32"}),
    (torch.float32, "float64", None, {"dtype": "float64"}),
    (torch.bfloat16, "float32", None, {"dtype": "float32"}),
    (torch.bfloat16, "float16", None, {"dtype": "bfloat16", "out_dtype": "float16"}),
]


@pytest.mark.parametrize(("stored", "dtype", "source_dtype", "expected"), DTYPES)
def test_dtypes_round_as_the_recipe_does(
    stored: torch.dtype,
    dtype: str | None,
    source_dtype: str | None,
    expected: dict[str, str],
    families: Any,
    tmp_path: Path,
) -> None:
    family = families("llama", stored).load()
    plain = Recipe("base", family.refs, dict.fromkeys(family.layout.groups, ta(a=1.0)))
    recipe = canonical_recipe(replace(plain, dtype=dtype, source_dtype=source_dtype))
    data, again = there_and_back(recipe, family, tmp_path)
    assert {key: data[key] for key in ("dtype", "out_dtype") if key in data} == expected
    assert (again.dtype, again.source_dtype) == (dtype, source_dtype)


def both(method: str, own: Mapping[str, Any] | None = None, **shared: Any) -> Assignment:
    values = {"coefficient": 0.5} if own is None else dict(own)
    return Assignment.of(method, {"ft1": values, "ft2": values}, **shared)


STOCK = [Assignment.of("model_stock", {"ft1": {}, other: {}}, convention="mergekit") for other in ("ft2", "ft3")]
WITH_BASE = {"ft1": {"coefficient": 1.0}, "base": {"coefficient": 1.0}}

REFUSED = [
    (both("ties"), {}, "follows the paper"),
    (both("dare_linear", convention="paper"), {}, "only recipes with convention: mergekit"),
    (both("magmax"), {}, "mergekit has no method magmax"),
    (both("consensus_ta"), {}, "mergekit has no method consensus_ta"),
    (both("pcb"), {}, "mergekit has no method pcb"),
    (both("task_arithmetic"), {"mlp": both("linear")}, "one method, and this recipe has linear, task_arithmetic"),
    (both("task_arithmetic", delta_scale=0.5), {}, "task_arithmetic has no delta_scale"),
    (both("slerp", on="task_vectors"), {}, "slerp has no on, and lm_head.weight has task_vectors"),
    (both("sce", {}, convention="mergekit", scale=0.5), {}, "sce has no scale"),
    (Assignment.of("arcee_fusion", {"ft1": {}}, spread=2.0), {}, "arcee_fusion has no spread"),
    (Assignment.of("karcher", {"ft1": {}, "ft2": {"coefficient": 2.0}}), {}, "karcher has no coefficient"),
    (STOCK[0], {"mlp": STOCK[1]}, "all tensors of a block from the same models"),
    (Assignment.of("task_arithmetic", WITH_BASE, normalize=True), {}, "the base among its sources"),
]


@pytest.mark.parametrize(("assignment", "exceptions", "message"), REFUSED, ids=[each[2][:30] for each in REFUSED])
def test_what_mergekit_cannot_do_is_refused_with_the_reason(
    assignment: Assignment, exceptions: Mapping[str, Assignment], message: str, sources: Sources
) -> None:
    with pytest.raises(MergingError) as caught:
        to_mergekit(recipe_of(sources, assignment, exceptions), sources)
    assert message in str(caught.value)


def test_a_model_that_the_recipe_does_not_list_is_refused(sources: Sources) -> None:
    recipe = Recipe("base", sources.refs, dict.fromkeys(sources.layout.groups, ta(ft1=0.5, nobody=0.5)))
    with pytest.raises(MergingError, match="merges nobody, which it does not list"):
        to_mergekit(recipe, sources)


def test_a_seed_is_not_exported_but_said(sources: Sources) -> None:
    one, other = (
        to_mergekit(recipe_of(sources, both("dare_ties", convention="mergekit", seed=seed)), sources) for seed in (0, 7)
    )
    assert "mergekit draws its own random masks" in one
    assert one.split("\n", 1)[1] == other.split("\n", 1)[1]


def test_spherical_methods_without_the_base_name_their_own_first(sources: Sources, tmp_path: Path) -> None:
    text = to_mergekit(recipe_of(sources, both("nuslerp", flatten=False)), sources)
    data = yaml.safe_load(text)
    assert "base_model" not in data and data["parameters"] == {"nuslerp_flatten": False}
    assert "config and tokenizer from its first model" in text
    data, _ = there_and_back(recipe_of(sources, both("nuslerp", on="task_vectors")), sources, tmp_path)
    assert data["base_model"] == path("base")
    data = yaml.safe_load(to_mergekit(recipe_of(sources, both("slerp")), sources))
    assert data["base_model"] == path("ft1") and data["parameters"] == {"t": 0.5}


def test_a_recipe_under_other_aliases_is_the_same_config(sources: Sources) -> None:
    recipe = recipe_of(sources, ta(ft1=0.5, ft2=0.25))
    names = {"base": "theta", "ft1": "zz", "ft2": "aa", "ft3": "ft3"}
    renamed = Recipe(
        "theta",
        {names[alias]: ref for alias, ref in recipe.sources.items()},
        dict.fromkeys(recipe.groups, ta(zz=0.5, aa=0.25)),
        dtype="float32",
    )
    assert yaml.safe_load(to_mergekit(renamed, sources)) == yaml.safe_load(to_mergekit(recipe, sources))


def test_one_model_under_two_names_has_no_equivalent(tmp_path: Path) -> None:
    twice = Sources.load(INPUTS / "base", {"a": INPUTS / "ft1", "b": INPUTS / "ft1"})
    recipe = Recipe("base", twice.refs, dict.fromkeys(twice.layout.groups, ta(a=0.5, b=0.25)))
    with pytest.raises(MergingError, match="two sources of the recipe are the same model"):
        to_mergekit(recipe, twice)


def test_adapters_and_vectors_have_no_equivalent_but_what_is_written_of_them_has(tmp_path: Path) -> None:
    base, adapter = write_base(tmp_path / "base"), write_adapter_folder(tmp_path / "adapter")
    vector, other = tmp_path / "vector", write_base(tmp_path / "other", rope_theta=5.0)
    vector.mkdir()
    write_vector(vector, open_model(base), open_model(adapter, open_model(base)), About("v"))
    moved = equip(other, {"a": vector}, force=True, made_from=base)
    cases = {"moved": (moved.recipe, moved.sources)}
    for folder in (adapter, vector):
        sources = Sources.load(base, {"a": folder})
        cases[folder.name] = (Recipe("base", sources.refs, dict.fromkeys(sources.layout.groups, ta(a=1.0))), sources)
    for name, (recipe, sources) in cases.items():
        with pytest.raises(MergingError, match="no adapters or task vectors, as a here"):
            to_mergekit(recipe, sources)
        assert not (export(recipe, sources, tmp_path / f"{name}-out") / "mergekit.yaml").exists()
    written = Sources.load(base, {"a": tmp_path / "adapter-out"})
    assert written.checkpoints["a"].content != Checkpoint.open(base).content
    text = to_mergekit(Recipe("base", written.refs, dict.fromkeys(written.layout.groups, ta(a=1.0))), written)
    assert "adapter-out" in text


NAMES = [
    *(f"model.layers.{i}.{m}.weight" for i in range(12) for m in ("mlp.up", "mlp.down", "self_attn.q", "norm")),
    "model.embed.weight",
    "model.norm.weight",
    "head.weight",
]


def depth_of(name: str) -> int | None:
    return int(name.split(".")[2]) if "layers" in name else None


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    st.fixed_dictionaries({name: st.sampled_from([0.1, 0.2, 0.3]) for name in NAMES})
    | st.tuples(
        st.fixed_dictionaries({m: st.floats(0, 1) for m in ("mlp", "self_attn", "norm")}),
        st.lists(st.floats(-2, 2), min_size=12, max_size=12),
        st.sampled_from([0.0, 0.5]),
    ).map(
        lambda e: {
            name: e[2] if depth_of(name) is None else e[0][name.split(".")[3]] * e[1][depth_of(name) or 0]
            for name in NAMES
        }
    )
    | st.fixed_dictionaries({name: st.booleans() for name in NAMES})
)
def test_any_values_are_written_exactly(values: dict[str, Any]) -> None:
    """Whatever the values: what is written evaluates to the same bits. Filters of numbers: 1 is not in 11."""
    stated = {
        name: Stated(value, 0.0 if depth_of(name) is None else position_of(depth_of(name) or 0, 12), depth_of(name))
        for name, value in values.items()
    }
    written = yaml.safe_load(yaml.safe_dump(compact(stated)))
    assert {name: evaluate(written, name, each.position) for name, each in stated.items()} == values


@pytest.mark.parametrize("depth", [24, 28, 32, 48, 50, 80])
def test_gradients_hit_their_knots_at_any_depth(depth: int) -> None:
    """47/49 · 49 is not 47 in floating point; a knot's value is taken all the same."""
    values = {f"h.{i}.mlp.weight": 0.1 + i * 0.37 for i in range(depth)}
    stated = {name: Stated(value, position_of(i, depth), i) for i, (name, value) in enumerate(values.items())}
    assert compact(stated) == list(values.values())


def test_more_filters_than_can_be_read_are_refused() -> None:
    stated = {f"h.{i}.experts.{j}.w{k}.weight": Stated(i + j * k / 7, i / 23, i)
              for i in range(24) for j in range(64) for k in range(3)}  # fmt: skip
    with pytest.raises(MergingError, match="filters for each of 4608 tensors"):
        compact(stated)
    by_kind = {name: each._replace(value=each.depth * (2.0 if "w1" in name else 1.0)) for name, each in stated.items()}
    assert [rule.get("filter") for rule in compact(by_kind)] == ["w1", None]


def test_a_group_of_the_search_is_short(sources: Sources) -> None:
    """A candidate with a coefficient for every kind and block, as the search writes it."""
    groups = {
        group: ta(ft1=0.01 * number, ft2=0.5 - 0.02 * number) for number, group in enumerate(sources.layout.groups)
    }
    recipe = canonical_recipe(Recipe("base", sources.refs, groups, dtype="float32"))
    assert Group("mlp", 3) in recipe.groups
    assert len(to_mergekit(recipe, sources).splitlines()) < 70
