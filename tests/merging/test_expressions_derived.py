"""Derived experts: the base in expressions, names that lead to others, and what a merge makes of them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from golden import GOLDEN
from hypothesis import given, settings
from hypothesis import strategies as st

from merging.configs import read_config
from merging.derived import as_linear
from merging.export import export
from merging.expressions import Affine, expand, parametric, task_vectors
from merging.materialize import Sources
from merging.recipe import Assignment, Group, MergingError, Recipe

INPUTS = GOLDEN / "inputs"
EXPERTS = {name: str(INPUTS / name) for name in ("ft1", "ft2", "ft3")}
KNOWN = ("math", "code", "toxic", "chat-7b")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("base - 1.0*toxic", {"toxic": -1}),
        ("base + 0.5*(math - base)", {"math": 0.5}),
        ("math - base", {"math": 1}),
        ("base - (toxic - base)", {"toxic": -1}),
        ("base + 0.3*(math - base) + 0.3*(code - base)", {"math": 0.3, "code": 0.3}),
        ("base", {}),
        ("math + 0.8*(code - toxic)", {"math": 1, "code": 0.8, "toxic": -0.8}),
        ("base + math - math", {"math": 0}),
        ("math + 0.5*code + 0.3*(toxic - base)", {"math": 1, "code": 0.5, "toxic": 0.3}),
        ("0.1*math + 0.2*code + 0.7*base", {"math": 0.1, "code": 0.2}),
    ],
)
def test_the_base_stands_for_no_change(text: str, expected: dict[str, float]) -> None:
    assert task_vectors(text, KNOWN) == expected


@pytest.mark.parametrize("text", ["2*base + math", "0.5*base - toxic", "math + code - base/2", "-1*base + 0.5*math"])
def test_a_base_that_would_have_to_be_scaled_is_refused(text: str) -> None:
    with pytest.raises(MergingError, match=r"expected 'base' in .* once, as in"):
        task_vectors(text, KNOWN)


def test_a_name_that_is_no_word_has_to_be_quoted() -> None:
    assert task_vectors("'chat-7b' + math", KNOWN) == {"chat-7b": 1, "math": 1}
    for text in ("chat-7b + math", "math + chat-7b*2"):
        with pytest.raises(MergingError, match="chat-7b is no word: write it in quotes, 'chat-7b'"):
            task_vectors(text, KNOWN)


def test_numbers_may_depend_on_variables() -> None:
    found = parametric("math + (1 - a)*code/2 + 3*b*(toxic - base)", KNOWN, ("a", "b"))
    assert found["math"] == Affine(1.0)
    assert found["code"]({"a": 0.5, "b": 9.0}) == 0.25 and found["toxic"]({"a": 9.0, "b": 2.0}) == 6.0
    assert found["code"].slope("a") == -0.5 and found["code"].slope("b") == 0.0 and "base" not in found
    with pytest.raises(MergingError, match="found 1\\*a times it"):
        parametric("math + a*base", KNOWN, ("a",))


def test_derived_experts_may_name_each_other() -> None:
    derived = {"both": "real + 2*clean", "real": "math + 0.5*(code - toxic)", "clean": "base - toxic", "none": "base"}
    assert expand(derived, KNOWN) == {
        "both": {"math": 1, "code": 0.5, "toxic": -2.5},
        "real": {"math": 1, "code": 0.5, "toxic": -0.5},
        "clean": {"toxic": -1},
        "none": {},
    }
    assert list(expand(derived, KNOWN)) == list(derived)


def test_decimals_that_cancel_leave_nothing() -> None:
    """0.30000000000000004 - 0.3 is no coefficient, and 1 - 0.7 - 0.2 - 0.1 is no weight of the base."""
    derived = {"some": "math + 0.1*toxic", "none": "3*some - 0.3*toxic", "tiny": "1e-15*code"}
    assert expand(derived, KNOWN)["none"] == {"math": 3.0} and expand(derived, KNOWN)["tiny"] == {"code": 1e-15}
    mean = {"d": {"x": 0.7, "y": 0.2, "z": 0.1}}
    written = as_linear(Assignment.of("linear", {"d": {"coefficient": 1.0}}), mean)
    assert {alias: dict(values)["coefficient"] for alias, values in written.sources} == mean["d"]


@pytest.mark.parametrize(
    ("derived", "message"),
    [
        ({"a": "b + math", "b": "c", "c": "2*a"}, "found a circle: a -> b -> c -> a"),
        ({"x": "math + a", "a": "b", "b": "a"}, "found a circle: a -> b -> a"),
        ({"a": "a"}, "found a circle: a -> a"),
        ({"math": "code"}, "'math' is the name of an expert already"),
        ({"base": "code"}, "'base' is the name of the base already"),
        ({"a": "mth"}, "a: the expression 'mth' names the model 'mth'; did you mean 'math'"),
        ({"a": "1e200*math", "b": "1e200*a"}, "b: expected finite coefficients"),
        ({f"a{n}": "math" for n in range(300)}, "at most 256 derived experts, found 300"),
        ({"a": "__import__('os')"}, "a: expected models, numbers"),
    ],
)
def test_what_cannot_be_derived_is_said_with_its_name(derived: dict[str, str], message: str) -> None:
    with pytest.raises(MergingError) as caught:
        expand(derived, KNOWN)
    assert message in str(caught.value)


def test_a_long_chain_needs_no_stack() -> None:
    chain = {"a0": "a1"} | {f"a{n}": f"a{n + 1} + math" for n in range(1, 255)} | {"a255": "code"}
    assert expand(chain, KNOWN)["a0"] == {"code": 1, "math": 254}


# -- in a merge -------------------------------------------------------------------------------------------------------


def merge(folder: Path, **more: Any) -> tuple[Recipe, Sources]:
    data = {"base": str(INPUTS / "base"), "experts": EXPERTS} | more
    path = folder / "merge.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in data.items() if value is not None}, sort_keys=False))
    return read_config(path)


def own(recipe: Recipe, group: str = "mlp.1") -> dict[str, dict[str, Any]]:
    return {alias: dict(values) for alias, values in recipe.groups[Group.parse(group)].sources}


ANALOGY = {"real": "ft1 + 0.8*(ft2 - ft3)"}


def test_under_a_linear_method_they_are_coefficients_and_no_model_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PARETOMERGE_CACHE", str(tmp_path / "cache"))
    recipe, sources = merge(tmp_path, derived=ANALOGY, method="task_arithmetic", vectors="real + 0.1*ft3")
    plain, _ = merge(tmp_path, method="task_arithmetic", vectors="ft1 + 0.8*ft2 + 0.1*ft3 - 0.8*ft3")
    assert recipe.hash == plain.hash and set(sources.checkpoints) == {"base", *EXPERTS}
    # an average of weights: real is itself one, whose weights sum to 1
    recipe, _ = merge(tmp_path, derived={"half": "base + 0.5*(ft1 - base)"}, method="linear", vectors="half + 2*ft2")
    assert own(recipe) == {name: {"coefficient": c} for name, c in (("base", 0.5), ("ft1", 0.5), ("ft2", 2.0))}
    assert not (tmp_path / "cache").exists()


def test_all_experts_are_the_config_s_own(tmp_path: Path) -> None:
    recipe, _ = merge(tmp_path, derived=ANALOGY, method="task_arithmetic", coefficients=0.3)
    assert own(recipe) == {name: {"coefficient": 0.3} for name in EXPERTS}


def test_under_other_methods_they_are_models_that_the_recipe_makes_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PARETOMERGE_CACHE", str(tmp_path / "cache"))
    groups = {"embedding": {"method": "task_arithmetic", "vectors": "real"}}
    recipe, sources = merge(tmp_path, derived=ANALOGY, method="ties", vectors="real + ft2", groups=groups)
    assert own(recipe).keys() == {"real", "ft2"} and own(recipe, "embedding").keys() == EXPERTS.keys()
    made_by = recipe.sources["real"].made_by
    assert made_by is not None and own(made_by)["ft3"] == {"coefficient": -0.8} and made_by.dtype == "float32"
    name = "model.layers.1.mlp.up_proj.weight"
    models = {alias: sources.tensor(alias, name).double() for alias in ("base", *EXPERTS, "real")}
    wanted = models["ft1"] + 0.8 * (models["ft2"] - models["ft3"])
    torch.testing.assert_close(models["real"], wanted, rtol=0, atol=1e-6)
    # what is exported is made again from its recipe alone, where the cache is gone
    first = export(recipe, sources, tmp_path / "first")
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    again, found = read_config(tmp_path / "recipe.yaml")
    second = export(again, found, tmp_path / "second")
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"derived": {"a": "b", "b": "a"}}, "merge.yaml, derived: expected derived experts that lead back"),
        ({"derived": {"a": 3}}, "derived, a: expected an expression such as"),
        ({"derived": ["a"]}, "derived: expected a mapping"),
        ({"derived": ANALOGY, "vectors": "reel"}, "names the model 'reel'; did you mean 'real'"),
        ({"vectors": "2*base + ft1"}, "expected 'base' in '2*base + ft1' once"),
    ],
)
def test_bad_input_is_one_paragraph(tmp_path: Path, more: dict[str, Any], message: str) -> None:
    with pytest.raises(MergingError) as caught:
        merge(tmp_path, **({"method": "task_arithmetic", "vectors": "ft1"} | more))
    assert message in str(caught.value) and "\n" not in str(caught.value)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    st.dictionaries(st.sampled_from(["x", "y", "d"]), st.integers(-8, 8).filter(bool), min_size=1),
    st.dictionaries(st.sampled_from(["x", "y", "z"]), st.integers(-8, 8)),
    st.sampled_from(["task_arithmetic", "linear"]),
)
def test_writing_out_a_derived_expert_changes_no_merge(
    outer: dict[str, int], inner: dict[str, int], method: str
) -> None:
    """θ of the written-out assignment is θ with the derived expert as a model, whatever the numbers."""
    theta = {"base": 1.0, "x": 2.0, "y": -3.0, "z": 0.25}
    theta["d"] = theta["base"] + sum(c * (theta[alias] - theta["base"]) for alias, c in inner.items())
    given = Assignment.of(method, {alias: {"coefficient": float(c)} for alias, c in outer.items()}, normalize=False)
    written = as_linear(given, {"d": {alias: float(c) for alias, c in inner.items() if c}})
    assert "d" not in dict(written.sources)

    def merged(assignment: Assignment) -> float:
        weights = {alias: float(dict(values)["coefficient"]) for alias, values in assignment.sources}
        if method == "linear":
            return sum(c * theta[alias] for alias, c in weights.items())
        return theta["base"] + sum(c * (theta[alias] - theta["base"]) for alias, c in weights.items())

    assert merged(written) == merged(given)  # dyadic: exact


def test_a_method_that_divides_by_the_sum_keeps_the_model() -> None:
    normal = Assignment.of("task_arithmetic", {"d": {"coefficient": 1.0}}, normalize=True)
    assert as_linear(normal, {"d": {"x": 2.0}}) == normal
    ties = Assignment.of("ties", {"d": {"coefficient": 1.0}})
    assert as_linear(ties, {"d": {"x": 2.0}}) == ties
