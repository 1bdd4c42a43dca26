"""Virtual experts and calibration in a config: what is refused and where, what the search makes of the rest."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from merging.methods import CALIBRATION
from merging.recipe import Group, MergingError, Recipe, SourceRef
from search.calibration import calibrated, default_evaluator, options_of
from search.config import load_config, resolved_yaml
from search.errors import SearchError
from search.events import RunStarted
from search.judge import Judge
from search.live_experts import LiveExperts
from search.objectives import Objectives
from search.optimizers.contract import Genome
from search.schema import Config, VirtualConfig
from search.space import Bounds, MethodChoice, Space, SpaceError
from search.space.methods import PLANNED, example, searched
from search.stages import LAMBDA_GRID, Stage, build_stages
from search.store import Candidate
from search.store.payloads import event_of, payload_of
from search.virtual import assignment_of, experts_of, recipe_of, references

if TYPE_CHECKING:
    from merging import Sources

GOOD = """\
name: demo
models:
  base: base
  experts:
    math: experts/math
    code: experts/code
  virtual:
    mean: {method: linear}
    solved: {method: regmean, parameters: {alpha: 0.8}, of: [code, math]}
calibration:
  items: 30
evaluators:
  math: {type: exact_match, data: data/math}
  coding: {type: exact_match, data: data/code}
objectives: [math.accuracy, {metric: coding.accuracy, expert: code}]
search:
  budget: {candidates: 50}
"""

GROUPS = [Group("embedding"), Group("norm"), Group("attention", 0), Group("mlp", 0), Group("attention", 1)]
REFS = {alias: SourceRef(f"/somewhere/{alias}", f"sha256:{alias}") for alias in ("base", "math", "code")}


def write(folder: Path, text: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(text)
    return path


def loaded(folder: Path, *changes: tuple[str, str]) -> Config:
    text = GOOD
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return load_config(write(folder, text)).config


def refused(folder: Path, *changes: tuple[str, str]) -> str:
    with pytest.raises(SearchError) as caught:
        loaded(folder, *changes)
    return str(caught.value)


MEAN = "mean: {method: linear}"

WRONG = {
    "an expert's name": ((MEAN, "math: {method: linear}"), "8:5: models.virtual.math: 'math' is the name of an expert"),
    "the base's name": ((MEAN, "base: {method: linear}"), "8:5: models.virtual.base: 'base' is the name of the base"),
    "an unknown key": (
        (MEAN, "mean: {metod: linear}"),
        "models.virtual.mean.metod: unknown key. Did you mean 'method'?",
    ),
    "no method": ((MEAN, "mean: {of: [math]}"), "models.virtual.mean.method: is required and missing"),
    "an unknown method": ((MEAN, "mean: {method: lineer}"), "did you mean 'linear'?"),
    "an unknown parameter": (
        (MEAN, "mean: {method: ties, parameters: {densty: 0.2}}"),
        "ties has no parameter 'densty'; did you mean 'density'?",
    ),
    "a value out of range": (
        (MEAN, "mean: {method: ties, parameters: {density: 2}}"),
        "expected a finite number in [0, 1]",
    ),
    "a coefficient among the parameters": (
        (MEAN, "mean: {method: linear, parameters: {coefficient: 1}}"),
        "coefficients stand under `coefficients`",
    ),
    "the fingerprint by hand": (
        ("{alpha: 0.8}", "{calibration: 'sha256:0'}"),
        "regmean has no parameter 'calibration'",
    ),
    "nobody": (
        (MEAN, "mean: {method: linear, of: []}"),
        "8:28: models.virtual.mean.of: expected one or more experts, found none",
    ),
    "an unknown expert": (
        ("of: [code, math]", "of: [code, maths]"),
        "9:68: models.virtual.solved.of.1: there is no expert 'maths'; there are: math, code. Did you mean 'math'?",
    ),
    "an expert twice": (("of: [code, math]", "of: [code, code]"), "solved.of.1: the expert 'code' is named twice"),
    "a virtual one of virtual ones": (("of: [code, math]", "of: [code, mean]"), "'mean' is virtual itself"),
    "coefficients of somebody else": (
        (MEAN, "mean: {method: linear, of: [math], coefficients: {code: 1}}"),
        "mean.coefficients.code: 'code' is none of the experts that it merges (math)",
    ),
    "coefficients where there are none": (
        (MEAN, "mean: {method: model_stock, coefficients: 1}"),
        "model_stock has no coefficients",
    ),
    "too few experts": ((MEAN, "mean: {method: slerp, of: [math], parameters: {}}"), "slerp expects exactly 2 sources"),
    "an objective of a virtual expert": (("expert: code}", "expert: mean}"), "'mean' is a virtual expert, a merge"),
    "data that nothing looks at": (
        ("    solved: {method: regmean, parameters: {alpha: 0.8}, of: [code, math]}\n", ""),
        "9:1: calibration: no method looks at inputs",
    ),
    "inputs of nobody": (
        ("  items: 30", "  inputs: {maths: {evaluator: math}}"),
        "11:12: calibration.inputs.maths: there is no expert 'maths'; there are: math, code. Did you mean 'math'?",
    ),
    "inputs of a virtual expert": (
        ("  items: 30", "  inputs: {mean: {evaluator: math}}"),
        "'mean' is a virtual expert",
    ),
    "inputs of who is not calibrated": (
        (
            "of: [code, math]}\ncalibration:\n  items: 30",
            "of: [math]}\ncalibration:\n  inputs: {code: {evaluator: math}}",
        ),
        "no calibrated method merges 'code'",
    ),
    "an unknown evaluator": (("  items: 30", "  inputs: {math: {evaluator: meth}}"), "there is no evaluator 'meth'"),
    "both sources of inputs": (
        ("  items: 30", "  inputs: {math: {evaluator: math, data: x.jsonl}}"),
        "calibration.inputs.math: name either an evaluator, or data",
    ),
    "an unknown option of inputs": (
        ("  items: 30", "  inputs: {math: {data: x.jsonl, txt: a}}"),
        "calibration.inputs.math.txt: unknown key. Did you mean 'text'?",
    ),
    "an expert that no evaluator is for": (
        ("expert: code}", "expert: math}"),
        "the expert 'code' needs inputs, and no evaluator has its name or is its objective's",
    ),
    "no items": (("items: 30", "items: 0"), "calibration.items: "),
    "a calibrated method beside virtual experts": (
        ("search:", "space: {methods: [task_arithmetic, fisher]}\nsearch:"),
        "space.methods.1: fisher looks at inputs of what it merges, and of the virtual experts",
    ),
}


@pytest.mark.parametrize("change, says", WRONG.values(), ids=WRONG.keys())
def test_what_is_wrong_is_said_with_its_place(change: tuple[str, str], says: str, tmp_path: Path) -> None:
    said = refused(tmp_path, change)
    assert says in said and "config.yaml:" in said


def test_a_name_that_an_expert_has_is_one_mistake(tmp_path: Path) -> None:
    said = refused(tmp_path, (MEAN, "math: {method: linear}"))
    assert "is the name of an expert" in said and "virtual itself" not in said


@pytest.mark.parametrize("tokenizer", ["union", "path:sha256:0"])
def test_nothing_is_calibrated_in_another_vocabulary(tokenizer: str) -> None:
    """The inputs are the base's tokens, and the live model would have other rows in their places."""
    live = LiveExperts(cast("Sources", SimpleNamespace(tokenizer=tokenizer, path=Path("base"))))
    with pytest.raises(MergingError, match=r"tokenizer: base"):
        live.engine("math")


def test_all_that_is_wrong_comes_at_once(tmp_path: Path) -> None:
    said = refused(tmp_path, ("of: [code, math]", "of: [code, maths]"), (MEAN, "mean: {method: lineer}"))
    assert "'maths'" in said and "'lineer'" in said


def test_which_data_are_used_stands_in_the_config_said_or_not(tmp_path: Path) -> None:
    config = loaded(tmp_path, ("calibration:\n  items: 30\n", ""))
    assert yaml.safe_load(resolved_yaml(config))["calibration"] == {"items": 256, "seed": 0, "inputs": {}}
    assert Config.model_validate(yaml.safe_load(resolved_yaml(config))) == config


def test_a_config_without_them_is_written_as_it_ever_was(tmp_path: Path) -> None:
    """What a run of old stored and what is stored now are the same, so that either version goes on with either."""
    text = GOOD[: GOOD.index("  virtual:")] + GOOD[GOOD.index("evaluators:") :]
    config = load_config(write(tmp_path, text)).config
    data = config.model_dump(mode="json")
    assert list(data) == [
        "name", "models", "evaluators", "objectives", "constraints", "space", "search", "engine",
    ]  # fmt: skip
    assert data["models"] == {
        "base": "base", "experts": {"math": "experts/math", "code": "experts/code"}, "dtype": None,
    }  # fmt: skip
    assert calibrated(config) == ()


def started(**more: Any) -> RunStarted:
    nothing: dict[str, Any] = {"config": {}, "sources": {}, "paths": {}, "groups": [], "objectives": []}
    nothing |= {"evaluators": {}, "engine": "", "threads": 1, "stage_ends": [], "reference": [], "items": {}}
    return RunStarted(**nothing, **more)


def test_the_log_says_what_virtual_experts_are_made_by_and_nothing_where_there_are_none() -> None:
    assert not {"made_by", "calibration"} & started().payload().keys()
    event = started(made_by={"mean": "yaml"}, calibration="sha256:1")
    assert event_of("run_started", payload_of(event)) == event


# --- what they are ---


def virtual(**said: Any) -> VirtualConfig:
    return VirtualConfig.model_validate(said)


def test_a_virtual_expert_is_its_method_over_its_experts(tmp_path: Path) -> None:
    config = loaded(tmp_path)
    assert experts_of(config) == ("math", "code", "mean", "solved")
    assert references(config)["solved"] == "regmean of code, math"
    recipe = recipe_of(config.models.virtual["solved"], config, GROUPS, REFS, "sha256:data")
    assert recipe.dtype == "float32" and set(recipe.groups) == set(GROUPS)
    assert {alias: ref.path for alias, ref in recipe.sources.items()} == {
        "base": "base", "code": "experts/code", "math": "experts/math",
    }  # fmt: skip
    (assignment,) = set(recipe.groups.values())
    shared = dict(assignment.parameters)
    assert shared[CALIBRATION.name] == "sha256:data" and shared["alpha"] == 0.8
    other = recipe_of(config.models.virtual["solved"], config, GROUPS, REFS, "sha256:other")
    assert other.hash != recipe.hash


@pytest.mark.parametrize("said, weights", [
    (None, {"code": 1.0, "math": 1.0}),
    (0.5, {"code": 0.5, "math": 0.5}),
    ({"math": 2.0}, {"math": 2.0}),
])  # fmt: skip
def test_coefficients_of_a_virtual_expert(said: Any, weights: dict[str, float], tmp_path: Path) -> None:
    made = assignment_of(virtual(method="task_arithmetic", coefficients=said), loaded(tmp_path))
    assert {alias: dict(values)["coefficient"] for alias, values in made.sources} == weights


def test_a_source_s_own_parameter_holds_for_all_its_experts(tmp_path: Path) -> None:
    made = assignment_of(virtual(method="ties", parameters={"density": 0.2, "scale": 0.5}), loaded(tmp_path))
    assert all(dict(values)["density"] == 0.2 for _, values in made.sources)
    assert dict(made.parameters)["scale"] == 0.5


def test_inputs_come_from_the_evaluator_of_the_name_or_of_the_objective(tmp_path: Path) -> None:
    config = loaded(tmp_path)
    assert [default_evaluator(config, each) for each in ("math", "code")] == ["math", "coding"]
    assert options_of(config, "code").evaluator == "coding"
    named = loaded(tmp_path, ("  items: 30", "  inputs: {code: {data: x.jsonl, text: '{a}'}}"))
    assert options_of(named, "code").data == Path("x.jsonl") and options_of(named, "math").evaluator == "math"


# --- what the search makes of them ---


def stages(config: Config, **more: Any) -> list[Stage]:
    made = {name: recipe_of(each, config, GROUPS, REFS) for name, each in config.models.virtual.items()}
    refs = REFS | {name: SourceRef("", f"sha256:{name}", recipe) for name, recipe in made.items()}
    return build_stages(config, GROUPS, refs, **more)


def test_each_is_a_baseline_alone_and_the_others_are_of_real_experts(tmp_path: Path) -> None:
    first = stages(loaded(tmp_path))[0]
    labels = [label for label, _ in first.fixed]
    grid = [f"task arithmetic {value}" for value in LAMBDA_GRID]
    alone = ["expert math", "expert code", "mean alone", "solved alone"]
    assert labels == ["base", *alone, "average", *grid, "ties λ=1", "dare_ties λ=1"]
    for label, genome in first.fixed:
        used = {alias for alias, _ in first.space.decode(genome).groups[GROUPS[0]].sources}
        if label.endswith(" alone"):
            assert used == {label.removesuffix(" alone")}
        else:
            assert used <= {"math", "code"}


def test_baselines_of_real_experts_are_the_recipes_that_they_were_without_virtual_ones(tmp_path: Path) -> None:
    with_them = dict(stages(loaded(tmp_path))[0].fixed)
    text = GOOD[: GOOD.index("  virtual:")] + GOOD[GOOD.index("evaluators:") :]
    without = build_stages(load_config(write(tmp_path, text)).config, GROUPS, REFS)[0]
    other = stages(loaded(tmp_path))[0]
    for label, genome in without.fixed:
        assert other.space.decode(with_them[label]).hash == without.space.decode(genome).hash


def test_the_space_has_genes_for_them_and_says_what_they_are_made_by(tmp_path: Path) -> None:
    last = stages(loaded(tmp_path))[-1]
    assert any("solved" in gene.name for gene in last.space.genes)
    recipe = last.space.decode(last.space.center())
    again = Recipe.from_yaml(recipe.to_yaml())
    assert again.hash == recipe.hash
    made_by = again.sources["solved"].made_by
    assert made_by is not None and {each.method for each in made_by.groups.values()} == {"regmean"}
    assert last.space.decode(last.space.encode(again)).hash == recipe.hash


def test_one_alone_counts_among_the_best_with_one_coefficient_per_expert(tmp_path: Path) -> None:
    fixed = ["base", "expert math", "expert code", "mean alone"]
    hashes = [f"{number:064x}" for number in range(5)]
    genome = stages(loaded(tmp_path))[0].fixed[0][1]
    candidates = [
        Candidate(number, int(number == 4), label, genome, hashes[number], "complete", "", None)
        for number, label in enumerate([*fixed, ""])
    ]
    data = {"name": "math.accuracy", "direction": "maximize", "low": 0.0, "high": 1.0, "expert": "math", "unit": ""}
    judge = Judge(Objectives.from_data([data]), candidates, ["baselines", "per-expert", "full"])
    values = [0.1, 0.5, 0.2, 0.9, 0.4]
    scores = {number: {"math.accuracy": (value, 0.01)} for number, value in enumerate(values)}
    found = {each.label: each.candidate for each in judge.baselines(scores)}
    assert found["mean alone"] == 3 and found["best per-expert"] == 3


# --- calibrated methods in a space ---


def space(*methods: str | MethodChoice, low: float = 0.0, calibration: str = "sha256:data") -> Space:
    return Space(
        base="base", sources=REFS, experts=("math", "code"), groups=GROUPS, granularity="model", kinds=[["mlp"]],
        coefficient=Bounds(low, 1.5), methods=methods, calibration=calibration,
    )  # fmt: skip


@pytest.mark.parametrize("method", ["regmean", "fisher", "regmean_plus"])
def test_the_space_names_the_data_in_every_assignment(method: str) -> None:
    of = space(method, "task_arithmetic")
    genome = of.center()
    recipe = of.decode(genome)
    assert all(dict(each.parameters)[CALIBRATION.name] == "sha256:data" for each in recipe.groups.values())
    assert of.decode(of.encode(recipe)).hash == recipe.hash
    assert space(method, "task_arithmetic", calibration="sha256:other").decode(genome).hash != recipe.hash


def test_what_a_method_fixes_is_no_gene() -> None:
    with pytest.raises(SpaceError, match="alpha of regmean_plus cannot be searched"):
        space(MethodChoice("regmean_plus", {"alpha": [0.1, 0.9]}), "task_arithmetic")
    fixed = space(MethodChoice("regmean_plus", {"alpha": 0.5}), "task_arithmetic")
    assert not any("alpha" in gene.name for gene in fixed.genes)
    searched_alpha = space(MethodChoice("regmean", {"alpha": [0.1, 0.9]}))
    assert any("alpha" in gene.name for gene in searched_alpha.genes)


def test_coefficients_that_a_method_fixes_are_its_own() -> None:
    method = searched(MethodChoice("regmean_plus"), 2, False, "sha256:data")
    assert not method.coefficients and method.per_source["coefficient"] == 1.0
    assert searched(MethodChoice("regmean"), 2, False, "sha256:data").coefficients


def test_what_is_collected_beforehand_is_what_candidates_ask_for() -> None:
    """Of RegMean++ the inputs depend on the assignment: that of a candidate must be the example, to the letter."""
    choice = MethodChoice("regmean_plus", {"alpha": 0.5})
    of = space(choice, "task_arithmetic")
    candidate = of.decode(of.center()).groups[GROUPS[0]]
    assert candidate == example(searched(choice, 2, False, "sha256:data"), ("math", "code"))


def test_bounds_that_a_method_does_not_accept_are_refused_in_the_file(tmp_path: Path) -> None:
    text = GOOD[: GOOD.index("  virtual:")] + GOOD[GOOD.index("evaluators:") :]
    text += "space: {coefficient: [-0.25, 1.5], methods: [task_arithmetic, regmean]}\n"
    with pytest.raises(SearchError) as caught:
        load_config(write(tmp_path, text))
    said = str(caught.value)
    assert "space.coefficient: regmean accepts coefficients in [0, inf], found [-0.25, 1.5]" in said
    assert "config.yaml:13:" in said
    load_config(write(tmp_path, text.replace("-0.25", "0")))
    load_config(write(tmp_path, text.replace("regmean", "slerp")))


def test_a_fingerprint_is_planned_where_nothing_was_read() -> None:
    of = Space(
        base="base", sources=REFS, experts=("math", "code"), groups=GROUPS, granularity="model", kinds=[["mlp"]],
        coefficient=Bounds(0.0, 1.0), methods=("regmean",),
    )  # fmt: skip
    (assignment,) = set(of.decode(of.center()).groups.values())
    assert dict(assignment.parameters)[CALIBRATION.name] == PLANNED


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_genomes_of_calibrated_methods_are_read_back(data: st.DataObject) -> None:
    """Coefficients of 0 among them, with which a source is left out, or with all of them the whole method."""
    of = CALIBRATED
    value = st.sampled_from([0.0, 0.25, 1.0])
    values = tuple(data.draw(value) for _ in range(of.box.continuous))
    genome = Genome(values, tuple(data.draw(st.integers(0, count - 1)) for count in of.box.categories))
    recipe = of.decode(genome)
    assert of.decode(of.canonical(genome)).hash == recipe.hash
    assert of.decode(of.encode(recipe)).hash == recipe.hash


CALIBRATED = space("regmean", "fisher", MethodChoice("regmean_plus", {"alpha": 0.5}), "iso_c")
