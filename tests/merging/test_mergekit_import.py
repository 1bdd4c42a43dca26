"""mergekit's YAML: what each way to write a merge means. The numbers are in test_mergekit_golden."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from golden import GOLDEN, invoke

from merging.mergekit import read_mergekit
from merging.recipe import Assignment, Group, MergingError, Recipe
from search.cli.merge import merge, parse_size


def config(tmp_path: Path, text: str | dict[str, Any]) -> Path:
    path = tmp_path / "config.yml"
    path.write_text(text if isinstance(text, str) else yaml.safe_dump(text, sort_keys=False))
    return path


def model(name: str, **more: Any) -> dict[str, Any]:
    return {"model": str(GOLDEN / "inputs" / name), **more}


def ta(**more: Any) -> dict[str, Any]:
    return {
        "merge_method": "task_arithmetic",
        "base_model": str(GOLDEN / "inputs" / "base"),
        "models": [model("ft1", parameters={"weight": 0.5})],
        "dtype": "float32",
    } | more


def coefficient(tmp_path: Path, weight: Any, name: str, **more: Any) -> float:
    """What a weight means for one tensor."""
    recipe, sources = read_mergekit(config(tmp_path, ta(models=[model("ft1", parameters={"weight": weight})], **more)))
    values = dict(recipe.for_tensor(name, sources.layout.group(name)).sources).get("ft1", (("coefficient", 0.0),))
    return float(dict(values)["coefficient"])  # a source of weight 0 is left out


def sliced(*slices: list[tuple[str, list[int] | None]], **more: Any) -> dict[str, Any]:
    """A config of slices: (model, layers) for each source."""
    data = ta(parameters={"weight": 1.0}) | more
    del data["models"]
    data["slices"] = [
        {"sources": [model(name, **({} if layers is None else {"layer_range": layers})) for name, layers in sources]}
        for sources in slices
    ]
    return data


LAYER = "model.layers.{}.mlp.up_proj.weight"


def test_gradients_are_linear_over_the_layers_and_start_outside_them(tmp_path: Path) -> None:
    knots = [0.0, 1.0, 0.0]
    found = [coefficient(tmp_path, knots, LAYER.format(i)) for i in range(4)]
    assert found == pytest.approx([0.0, 2 / 3, 2 / 3, 0.0])
    for outside in ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"):
        assert coefficient(tmp_path, [0.25, 1.0], outside) == 0.25
    assert coefficient(tmp_path, [0.7], LAYER.format(2)) == 0.7


def test_the_first_filter_that_matches_counts_and_else_the_next_level(tmp_path: Path) -> None:
    rules = [
        {"filter": "mlp", "value": [0.0, 0.3]},
        {"filter": "up_proj", "value": 9.0},
        {"filter": "self_attn", "value": 0.2},
    ]
    assert coefficient(tmp_path, rules, LAYER.format(3), parameters={"weight": 0.9}) == 0.3
    assert coefficient(tmp_path, rules, "model.norm.weight", parameters={"weight": 0.9}) == 0.9
    for wildcard in ("*", None):
        assert coefficient(tmp_path, [*rules, {"filter": wildcard, "value": 0.1}], "model.norm.weight") == 0.1
    with pytest.raises(
        MergingError, match=r"needs a weight of .*ft1 for tensor .*, and nothing in the config gives one"
    ):
        coefficient(tmp_path, rules, "model.norm.weight")


def test_a_sources_own_parameters_win_over_the_slices_and_these_over_the_top(tmp_path: Path) -> None:
    def read(own: dict[str, Any], inner: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
        data = ta(parameters=top)
        del data["models"]
        data["slices"] = [{"sources": [model("ft1", layer_range=[0, 4], parameters=own)], "parameters": inner}]
        recipe, _ = read_mergekit(config(tmp_path, data))
        assignment = recipe.groups[Group("mlp", 0)]
        return dict(assignment.sources[0][1]) | dict(assignment.parameters)

    assert read({"weight": 1.0}, {"weight": 2.0, "lambda": 0.5}, {"weight": 3.0, "lambda": 0.25}) == {
        "coefficient": 1.0, "scale": 0.5, "normalize": False,
    }  # fmt: skip
    assert read({}, {"weight": 2.0}, {"weight": 3.0, "normalize": True}) == {
        "coefficient": 2.0, "scale": 1.0, "normalize": True,
    }  # fmt: skip
    assert read({}, {}, {"weight": 3.0})["coefficient"] == 3.0


def test_the_recipe_stays_small_where_tensors_agree(tmp_path: Path) -> None:
    recipe, sources = read_mergekit(GOLDEN / "linear_grad_filter" / "config.yml")
    assert recipe.tensors == {} and set(recipe.groups) == set(sources.layout.groups)
    rules = [{"filter": "up_proj", "value": 0.1}, {"value": 0.5}]
    recipe, _ = read_mergekit(config(tmp_path, ta(models=[model("ft1", parameters={"weight": rules})])))
    assert set(recipe.tensors) == {LAYER.format(i) for i in range(4)}


def test_dtypes(tmp_path: Path) -> None:
    def dtypes(**more: Any) -> tuple[str | None, str | None]:
        data = ta()
        del data["dtype"]
        recipe, _ = read_mergekit(config(tmp_path, data | more))
        return recipe.dtype, recipe.source_dtype

    assert dtypes() == (None, None)
    assert dtypes(dtype="float32") == ("float32", None)
    assert dtypes(dtype="bfloat16") == ("bfloat16", "bfloat16")
    assert dtypes(dtype="float32", out_dtype="bfloat16") == ("bfloat16", None)
    assert dtypes(out_dtype="float16") == ("float16", None)


def test_sources_of_several_dtypes_are_promoted(families: Callable[..., Any], tmp_path: Path) -> None:
    base, expert = families("llama", torch.bfloat16).base, families("llama").a
    data = ta(base_model=str(base), models=[{"model": str(expert), "parameters": {"weight": 1}}])
    del data["dtype"]
    assert read_mergekit(config(tmp_path, data))[0].dtype == "float32"


def test_the_first_model_is_the_base_where_none_is_named(tmp_path: Path) -> None:
    models = [model("ft1", parameters={"weight": 1}), model("ft2", parameters={"weight": 3})]
    recipe, sources = read_mergekit(config(tmp_path, {"merge_method": "linear", "models": models}))
    assert sources.path.name == "ft1"
    assert [alias for alias, _ in recipe.groups[Group("head")].sources] == ["base", "ft2"]


def test_models_are_looked_up_beside_the_config_then_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "elsewhere").symlink_to(GOLDEN / "inputs")
    (tmp_path / "configs" / "near").symlink_to(GOLDEN / "inputs" / "ft1")
    monkeypatch.chdir(tmp_path)
    data = ta(base_model="elsewhere/base", models=[{"model": "near", "parameters": {"weight": 1}}])
    _, sources = read_mergekit(config(tmp_path / "configs", data))
    assert sources.checkpoints.keys() == {"base", "ft1"}
    data["models"][0]["model"] = "far"
    with pytest.raises(MergingError, match=r"found none; looked at .*configs/far and .*far\. Nothing is downloaded"):
        read_mergekit(config(tmp_path / "configs", data))


def test_other_references_go_through_the_resolver(tmp_path: Path) -> None:
    data = ta(base_model="hidden://base", models=[{"model": "hidden://ft2", "parameters": {"weight": 1}}])
    path = config(tmp_path, data)

    def resolve(reference: str) -> Path | None:
        return GOLDEN / "inputs" / reference.removeprefix("hidden://") if "://" in reference else None

    _, sources = read_mergekit(path, resolve)
    assert sources.checkpoints["ft2"].path.name == "ft2"


BAD = [
    ("- a", "expected a mergekit config"),
    ("{a: [", "expected YAML in"),
    (ta(merge_method="slrp"), "merge_method 'slrp' is not one of mergekit's here; did you mean 'slerp'"),
    (ta(paramters={}), "unknown key 'paramters'; did you mean 'parameters'"),
    (ta(parameters={"lamda": 1}), "task_arithmetic has no parameter 'lamda' here; did you mean 'lambda'"),
    (ta(parameters={"density": 0.5}), "task_arithmetic has no parameter 'density' here"),
    (ta(models=[model("ft1", parameters={"normalize": True})]), "it is shared: write it in the top level's parameters"),
    (ta(models=[model("ft1", weight=1)]), "unknown key 'weight'"),
    (ta(models=[model("ft1"), model("ft1")]), "is listed twice"),
    (ta(models=[]), "expected a list of models"),
    (ta(models=[{"path": "x"}]), "expected a mapping with a model"),
    (ta(models=[{"model": {"model": {"path": "x", "revision": "y"}}}]), "revisions and overrides are not supported"),
    (ta(models=[{"model": "x+lora"}]), "adds a LoRA to a model, which is not supported"),
    (ta(base_model=None), "task_arithmetic needs a base_model, found none"),
    (ta(dtype="bf16"), "expected dtype to be one of float32, bfloat16, float16, float64, found 'bf16'"),
    (ta(dtype=["float32"]), "expected dtype to be a name such as bfloat16"),
    (ta(slices=[]), "expected one of models and slices, found models and slices"),
    (ta(models=None), "found neither"),
    (ta(models=None, modules={"text": {}}), "modules (a config for each part of a model) are not supported"),
    (ta(models=[model("ft1", layer_range=[0, 2])]), "layers are chosen under slices"),
    (ta(models=None, slices=[{"sources": []}] * 2), "slices[0], sources: expected a list of models"),
    (sliced([("ft1", [0, 9])]), "gives layers [0, 9], but has 4"),
    (sliced([("ft1", [0])]), "expected layer_range: [first, last + 1], found [0]"),
    (sliced([("ft1", [2, 2])]), "expected layer_range: [first, last + 1], found [2, 2]"),
    (sliced([("ft1", [-1, 2])]), "expected layer_range: [first, last + 1], found [-1, 2]"),
    (sliced([("ft1", [0, 2]), ("ft2", [0, 3])]), "expected all sources to give as many layers"),
    (sliced([("ft1", [0, 2]), ("ft2", [1, 3])]), "list the base_model"),
    (sliced([("ft1", [0, 2])], [("ft2", None)]), "expected a layer_range for every source"),
    (sliced([("ft1", [0, 2])], base_model=None, merge_method="ties"), "ties needs a base_model"),
    (ta(models=[model("ft1", parameters={"weight": "much"})]), "expected a number for weight, found 'much'"),
    (ta(models=[model("ft1", parameters={"weight": [0.1, float("nan")]})]), "expected a number for a gradient"),
    (ta(parameters={"normalize": "yes"}), "expected true or false for normalize, found 'yes'"),
    (ta(models=[model("ft1", parameters={"weight": []})]), "at least one value, found an empty list"),
    (
        ta(models=[model("ft1", parameters={"weight": [{"filtre": "x"}]})]),
        "unknown key 'filtre'; did you mean 'filter'",
    ),
    (ta(chat_template="auto"), "chat_template is not supported"),
    (ta(tokenizer={"source": "union", "tokens": {"<x>": {}}}), "tokenizer.tokens is not supported"),
    (ta(tokenizer={"sauce": "union"}), "unknown key 'sauce'; did you mean 'source'"),
    (ta(tokenizer={"source": "base"}, tokenizer_source="base"), "expected one of tokenizer_source and tokenizer"),
    (ta(tokenizer_source="nowhere"), "expected a model folder for 'nowhere'"),
    (ta(merge_method="slerp", parameters={"t": 0.5}, models=[model("ft1"), model("ft2")]), "exactly one other model"),
    (ta(merge_method="linear"), "linear merges the base_model"),
    (ta(merge_method="passthrough", models=[model("ft1")]), "passthrough expects one model for each slice, found 2"),
    (ta(merge_method="nearswap", models=[model("ft1")]), "nearswap needs a t for tensor"),
    (
        ta(merge_method="karcher", models=[model("ft1")], parameters={"max_iter": 2.5}),
        "expected an integer for max_iter",
    ),
    (ta(merge_method="della", models=[model("ft1", parameters={"weight": 1, "density": 0.9})]), "density"),
]


@pytest.mark.parametrize(("text", "message"), BAD, ids=[message[:40] for _, message in BAD])
def test_bad_configs_are_refused_with_a_word_on_what_to_do(
    tmp_path: Path, text: str | dict[str, Any], message: str
) -> None:
    with pytest.raises(MergingError) as caught:
        merge(config(tmp_path, text), tmp_path / "out")
    assert message in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_configs_that_carry_ties_parameters_along_are_read(tmp_path: Path) -> None:
    read_mergekit(config(tmp_path, ta(parameters={"int8_mask": True, "weight": 1.0})))


def test_a_missing_config_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(MergingError, match="could not read it"):
        merge(tmp_path / "none.yml", tmp_path / "out")


def test_a_recipe_whose_models_changed_is_refused(tmp_path: Path) -> None:
    merge(GOLDEN / "slerp" / "config.yml", tmp_path / "out")
    recipe = yaml.safe_load((tmp_path / "out" / "recipe.yaml").read_text())
    recipe["sources"]["ft1"]["path"] = str(GOLDEN / "inputs" / "ft2")
    with pytest.raises(MergingError, match=r"the recipe's source 'ft1' .* now contains sha256"):
        merge(config(tmp_path, recipe), tmp_path / "again")


def test_sizes() -> None:
    assert [parse_size(text) for text in ("1000", "5 MB", "2GB", "0.5g")] == [
        1000,
        5_000_000,
        2_000_000_000,
        500_000_000,
    ]
    for text in ("", "big", "-1GB", "0"):
        with pytest.raises(MergingError, match="expected a size such as"):
            parse_size(text)


DEFAULTS = [
    ("linear", "weight", {"coefficient": 1.0}, {"normalize": True}),
    ("nuslerp", "weight", {"coefficient": 1.0}, {"flatten": True, "on": "task_vectors", "row_wise": False}),
    ("multislerp", "weight", {"coefficient": 1.0}, {"eps": 1e-8, "normalize": True, "on": "task_vectors"}),
    ("karcher", None, {"coefficient": 1.0}, {"max_iter": 10, "tol": 1e-5}),
    ("task_arithmetic", "weight", {"coefficient": 1.0}, {"normalize": False, "scale": 1.0}),
    ("ties", "weight", {"density": 1.0}, {"normalize": True, "rescale": False}),
    ("dare_linear", "weight", {"density": 1.0}, {"normalize": False, "rescale": True}),
    ("dare_ties", "weight", {"density": 1.0}, {"normalize": False, "rescale": True}),
    ("della", "weight", {"density": 1.0, "epsilon": 0.15}, {"normalize": True, "rescale": True}),
    ("della_linear", "weight", {"density": 1.0, "epsilon": 0.15}, {"normalize": False, "rescale": True}),
    ("breadcrumbs", "weight", {"density": 1.0, "gamma": 0.01}, {"normalize": False, "rescale": False}),
    ("breadcrumbs_ties", "weight", {"density": 1.0, "gamma": 0.01}, {"normalize": False, "rescale": False}),
    ("sce", None, {}, {"density": 1.0}),
    ("model_stock", None, {}, {"row_wise": False}),
    ("arcee_fusion", None, {}, {}),
    ("ram", None, {}, {"epsilon": 1e-5}),
    ("ramplus_tl", None, {}, {"epsilon": 1e-5, "r": 0.1, "alpha": 0.2}),
]
ONE = ("arcee_fusion",)
WITH_CONVENTION = ("ties", "sce", "model_stock", "dare", "della", "breadcrumbs")


@pytest.mark.parametrize(("method", "weight", "own", "shared"), DEFAULTS, ids=[each[0] for each in DEFAULTS])
def test_mergekits_defaults_are_written_out(
    method: str, weight: str | None, own: dict[str, Any], shared: dict[str, Any], tmp_path: Path
) -> None:
    """A config that says nothing means mergekit's defaults, whatever ours are."""
    from merging.methods.registry import canonical

    given = {"parameters": {weight: 1.0}} if weight else {}
    models = [model(name, **given) for name in ("ft1", "ft2")[: 1 if method in ONE else 2]]
    if method in {"linear", "karcher"}:
        models.append(model("base", **given))  # else it would be appended
    recipe, _ = read_mergekit(config(tmp_path, ta(merge_method=method, models=models)))
    if method.startswith(WITH_CONVENTION):
        shared = shared | {"convention": "mergekit"}
    own = own | ({"coefficient": 1.0} if weight else {})
    names = ["base"] if method in {"linear", "karcher"} else []
    wanted = Assignment.of(method, dict.fromkeys([*names, "ft1", "ft2"][: len(models)], own), **shared)
    assert recipe.groups[Group("mlp", 1)] == canonical(wanted)


def test_base_models_role_depends_on_the_method(tmp_path: Path) -> None:
    def aliases(method: str, names: list[str], base: str | None, **top: Any) -> tuple[str, ...]:
        models = [model(name, parameters={"weight": 0.5}) for name in names]
        data = ta(merge_method=method, models=models, parameters=top)
        data["base_model"] = base and model(base)["model"]
        recipe, _ = read_mergekit(config(tmp_path, data))
        return tuple(alias for alias, _ in recipe.groups[Group("mlp", 0)].sources)

    assert aliases("ties", ["base", "ft1"], "base") == aliases("ties", ["ft1"], "base") == ("ft1",)
    assert aliases("linear", ["ft1"], "base", weight=0.25) == ("base", "ft1")  # appended
    assert aliases("nuslerp", ["ft1", "ft2"], None) == ("base", "ft2")  # the first model is the recipe's base
    assert aliases("nuslerp", ["ft1", "ft2"], "base") == ("ft1", "ft2")


def test_nuslerp_with_a_base_model_is_on_task_vectors(tmp_path: Path) -> None:
    models = [model("ft1", parameters={"weight": 1}), model("ft2", parameters={"weight": 1})]
    data = ta(merge_method="nuslerp", models=models)
    assert ("on", "task_vectors") in read_mergekit(config(tmp_path, data))[0].groups[Group("head")].parameters
    del data["base_model"]
    assert ("on", "task_vectors") not in read_mergekit(config(tmp_path, data))[0].groups[Group("head")].parameters


def test_slices_stack_layers_with_their_own_gradients_and_names(tmp_path: Path) -> None:
    data = sliced([("base", [0, 3]), ("ft1", [0, 3])], [("base", [1, 4]), ("ft2", [1, 4])])
    rules = [{"filter": "layers.3.", "value": 9.0}, {"value": [0.0, 1.0]}]
    data["slices"][1]["sources"][1]["parameters"] = {"weight": rules}
    data["slices"][0]["parameters"] = {"weight": [0.5, 0.7]}
    recipe, sources = read_mergekit(config(tmp_path, data))
    assert recipe.layers == ({"base": 0, "ft1": 0}, {"base": 1, "ft1": 1}, {"base": 2, "ft1": 2},
                             {"base": 1}, {"base": 2, "ft2": 2}, {"base": 3, "ft2": 3})  # fmt: skip
    weights = [
        {alias: dict(values)["coefficient"] for alias, values in recipe.groups[Group("mlp", block)].sources}
        for block in range(6)
    ]
    # Filters match the names that a tensor has in its own model: block 5 of the result is block 3 of ft2.
    assert weights == [{"ft1": 0.5}, {"ft1": 0.6}, {"ft1": 0.7}, {}, {"ft2": 0.5}, {"ft2": 9.0}]
    assert dict(recipe.groups[Group("embedding")].sources) == {"ft1": (("coefficient", 0.5),)}
    assert recipe.groups[Group("norm")].sources == recipe.groups[Group("head")].sources == ()  # 0.0, of the last
    assert sources.layout.depth() == 4


def test_slices_that_leave_every_layer_in_place_are_no_stack(tmp_path: Path) -> None:
    whole = read_mergekit(config(tmp_path, sliced([("base", [0, 4]), ("ft1", [0, 4])])))[0]
    parts = read_mergekit(config(tmp_path, sliced([("base", [0, 1]), ("ft1", [0, 1])], [("ft1", [1, 4])])))[0]
    assert whole.layers is None and whole.hash == parts.hash
    assert whole.hash == read_mergekit(config(tmp_path, ta(parameters={"weight": 1.0}, models=[model("ft1")])))[0].hash


def test_a_slice_of_one_layer_is_the_end_of_its_gradient(tmp_path: Path) -> None:
    data = sliced([("ft1", [0, 3])], [("ft1", [3, 4])])
    data["parameters"] = {"weight": [0.25, 0.75]}
    recipe, _ = read_mergekit(config(tmp_path, data))
    found = [dict(recipe.groups[Group("mlp", i)].sources[0][1])["coefficient"] for i in range(4)]
    assert found == [0.25, 0.5, 0.75, 0.75]
    assert dict(recipe.groups[Group("head")].sources[0][1])["coefficient"] == 0.25


def test_a_tokenizer_can_be_asked_for_in_both_ways(tmp_path: Path) -> None:
    for more in ({"tokenizer_source": "base"}, {"tokenizer": {"source": "union"}}):
        recipe, sources = read_mergekit(config(tmp_path, ta(parameters={"weight": 1.0}, **more)))
        assert recipe.tokenizer is sources.tokenizer is None  # there is none: nothing to align


def test_the_command_prints_one_paragraph_and_exits_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from search.cli import run_command

    assert run_command(["merge", str(config(tmp_path, ta(dtype="bf16"))), str(tmp_path / "out")]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: expected dtype") and "Traceback" not in printed.err and printed.out == ""


def test_the_command_prints_what_there_is_to_know(tmp_path: Path) -> None:
    """A wrong base is no error, but nothing to be silent about."""
    from safetensors.torch import load_file, save_file

    far = tmp_path / "far"
    far.mkdir()
    (far / "config.json").write_bytes((GOLDEN / "inputs" / "ft1" / "config.json").read_bytes())
    torch.manual_seed(0)
    weights = load_file(GOLDEN / "inputs" / "ft1" / "model.safetensors")
    save_file({name: torch.randn_like(each) for name, each in weights.items()}, far / "model.safetensors")
    path = config(tmp_path, ta(models=[{"model": str(far), "parameters": {"weight": 1}}]))
    result = invoke("merge", path, tmp_path / "out")
    assert result.exit_code == 0 and "note: " in result.output and "far from the base" in result.output


def test_a_pickled_model_is_read_where_that_is_asked_for(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    folder = tmp_path / "pickled"
    folder.mkdir()
    (folder / "config.json").write_bytes((GOLDEN / "inputs" / "ft1" / "config.json").read_bytes())
    torch.save(load_file(GOLDEN / "inputs" / "ft1" / "model.safetensors"), folder / "pytorch_model.bin")
    path = config(tmp_path, ta(models=[{"model": str(folder), "parameters": {"weight": 1}}]))
    refused = invoke("merge", path, tmp_path / "out")
    assert isinstance(refused.exception, MergingError) and not (tmp_path / "out").exists()
    assert invoke("merge", path, tmp_path / "out", "--allow-pickle").exit_code == 0
    plain = read_mergekit(config(tmp_path, ta(models=[model("ft1", parameters={"weight": 1})])))[0]
    assert Recipe.from_yaml((tmp_path / "out" / "recipe.yaml").read_text()).hash == plain.hash
