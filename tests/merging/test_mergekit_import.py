"""mergekit's YAML, against what mergekit 0.1.5 computed, through the command."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from merging.checkpoint import Checkpoint
from merging.mergekit import read_mergekit
from merging.recipe import Group, MergingError
from search.cli.merge import merge, parse_size

GOLDEN = Path(__file__).parent.parent / "golden" / "mergekit"

BFLOAT16 = 2.0**-8  # half the spacing at 1: what one rounding to bfloat16 may lose, relative to the value


def tensors(folder: Path) -> dict[str, Tensor]:
    checkpoint = Checkpoint.open(folder)
    return {name: checkpoint.read(name) for name in checkpoint.tensors}


def merged(case: str, tmp_path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(ours, mergekit's) of a golden case."""
    merge(GOLDEN / case / "config.yml", tmp_path / "out")
    ours, theirs = tensors(tmp_path / "out"), tensors(GOLDEN / case / "out")
    assert ours.keys() == theirs.keys() and len(ours) == 39
    assert all(ours[name].dtype == theirs[name].dtype for name in ours)
    return ours, theirs


def inputs() -> tuple[dict[str, Tensor], ...]:
    return tuple(tensors(GOLDEN / "inputs" / name) for name in ("base", "ft1", "ft2", "ft3"))


@pytest.mark.parametrize(
    "case",
    [
        "linear",
        "linear_nonorm",
        "linear_grad_filter",
        "slerp",
        "slerp_grad",
        "task_arithmetic",
        "task_arithmetic_negate",
    ],
)
def test_float32_agrees_with_mergekit(case: str, tmp_path: Path) -> None:
    ours, theirs = merged(case, tmp_path)
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=5e-7, msg=lambda text, n=name: f"{n}: {text}")
    # The tolerance would see the wrong case: the result is far from its nearest input.
    distance = min(max(float((source[name] - theirs[name]).abs().max()) for name in theirs) for source in inputs())
    assert distance > 1e-3


@pytest.mark.parametrize("case", ["linear_bf16", "slerp_bf16"])
def test_bfloat16_agrees_with_mergekit_to_one_unit_of_the_largest_term(case: str, tmp_path: Path) -> None:
    ours, theirs = merged(case, tmp_path)
    sources = inputs()
    for name in theirs:
        largest = torch.stack([source[name].bfloat16().double().abs() for source in sources]).amax(0)
        assert bool(((ours[name].double() - theirs[name].double()).abs() <= spacing(largest)).all()), name
        if case == "slerp_bf16":
            assert torch.equal(ours[name], theirs[name])


def test_bfloat16_linear_differs_from_mergekit_in_exact_ties_alone(tmp_path: Path) -> None:
    """Where the two disagree, the exact value lies midway between theirs and ours: a coin toss of float32 sums."""
    ours, theirs = merged("linear_bf16", tmp_path)
    sources = inputs()[1:]
    differing = 0
    for name in theirs:
        terms = [c / 1.2 * s[name].bfloat16().double() for c, s in zip((0.5, 0.3, 0.4), sources, strict=True)]
        exact, magnitude = sum(terms), sum(term.abs() for term in terms)
        middle = (ours[name].double() + theirs[name].double()) / 2
        apart = ours[name] != theirs[name]
        assert bool(((middle - exact).abs() <= 2.0**-22 * magnitude)[apart].all()), name
        differing += int(apart.sum())
    assert 0 < differing < 0.02 * 26760


def spacing(value: Tensor) -> Tensor:
    """Distance between neighbouring bfloat16 numbers at a value."""
    return 2.0 ** torch.floor(torch.log2(value.clamp(min=1e-30))) * 2.0**-7


def test_bfloat16_task_arithmetic_differs_from_mergekit_by_its_roundings_alone(tmp_path: Path) -> None:
    """mergekit rounds after every operation where the config says bfloat16; we round the exact sum once."""
    ours, theirs = merged("task_arithmetic_bf16", tmp_path)
    loaded = inputs()
    weights = (0.6, 0.4, 0.3)
    for name in theirs:
        base, *experts = (source[name].bfloat16() for source in loaded)
        deltas = [(expert - base) * torch.tensor(c).bfloat16() for expert, c in zip(experts, weights, strict=True)]
        stepwise = base + torch.stack(deltas).sum(0) * 0.9
        assert torch.equal(stepwise, theirs[name]), "the inputs and the formula are mergekit's"
        origin, *ends = (tensor.double() for tensor in (base, *experts))
        terms = [0.9 * c * (end - origin) for end, c in zip(ends, weights, strict=True)]
        exact = origin + sum(terms)
        # float32 sums: a value next to a rounding boundary may fall on its other side.
        slack = 2.0**-22 * (origin.abs() + sum(term.abs() for term in terms))
        half = 0.5 * spacing(exact.abs()) * (1 + 1e-9)
        assert bool(((ours[name].double() - exact).abs() <= half + slack).all()), name
        # Difference, weight, product, sum, factor and product are rounded, then the result: so far they may be apart.
        budget = 6 * BFLOAT16 * 1.02 * sum(term.abs() for term in terms) + 2 * BFLOAT16 * exact.abs() * 1.02
        assert bool(((ours[name].double() - theirs[name].double()).abs() <= budget + 1e-30).all()), name


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
    ((_, values),) = recipe.for_tensor(name, sources.layout.group(name)).sources
    return float(dict(values)["coefficient"])


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
    with pytest.raises(MergingError, match=r"needs a weight for tensor .*, and nothing in the config gives one"):
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
    (ta(merge_method="slrp"), "merge_method 'slrp' is not supported yet; did you mean 'slerp'"),
    (ta(paramters={}), "unknown key 'paramters'; did you mean 'parameters'"),
    (ta(parameters={"lamda": 1}), "task_arithmetic has no parameter 'lamda' here; did you mean 'lambda'"),
    (ta(parameters={"density": 0.5}), "task_arithmetic has no parameter 'density' here"),
    (ta(models=[model("ft1", parameters={"normalize": True})]), "it is shared: write it in the top level's parameters"),
    (ta(models=[model("ft1", weight=1)]), "unknown key 'weight'"),
    (ta(models=[model("ft1"), model("ft1")]), "is listed twice"),
    (ta(models=[]), "expected a list of models"),
    (ta(models=[{"path": "x"}]), "expected a mapping with a model"),
    (ta(models=[{"model": {"model": {"path": "x", "revision": "y"}}}]), "revisions and overrides are not supported"),
    (ta(models=[{"model": "x+lora"}]), "adds a LoRA to a model, which is not supported yet"),
    (ta(base_model=None), "task_arithmetic needs a base_model, found none"),
    (ta(dtype="bf16"), "expected dtype to be one of float32, bfloat16, float16, float64, found 'bf16'"),
    (ta(slices=[]), "expected one of models and slices, found models and slices"),
    (ta(models=None), "found neither"),
    (ta(models=None, modules={"text": {}}), "modules (models of several parts) are not supported yet"),
    (ta(models=None, slices=[{"sources": []}] * 2), "stacking layers of several slices is not supported yet"),
    (ta(models=None, slices=[{"sources": [model("ft1", layer_range=[0, 2])]}]), "gives layers [0, 2] of 4"),
    (ta(models=[model("ft1", layer_range=[0])]), "expected layer_range: [first, last + 1], found [0]"),
    (ta(models=[model("ft1", parameters={"weight": "much"})]), "expected a number for weight, found 'much'"),
    (ta(models=[model("ft1", parameters={"weight": []})]), "at least one value, found an empty list"),
    (
        ta(models=[model("ft1", parameters={"weight": [{"filtre": "x"}]})]),
        "unknown key 'filtre'; did you mean 'filter'",
    ),
    (ta(tokenizer_source="union"), "tokenizer_source other than 'base' are not supported yet"),
    (ta(merge_method="slerp", parameters={"t": 0.5}, models=[model("ft1"), model("ft2")]), "exactly one other model"),
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
    read_mergekit(config(tmp_path, ta(parameters={"int8_mask": True})))


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


def test_the_golden_folders_are_complete() -> None:
    assert len([path for path in GOLDEN.iterdir() if (path / "out" / "model.safetensors").is_file()]) >= 10
    assert math.isclose(sum(t.numel() for t in inputs()[0].values()), 26760)
