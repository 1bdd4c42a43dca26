"""Spaces of expressions: what variables do to experts' coefficients, and the way back; derived experts in a config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from merging.recipe import Group, SourceRef
from search.algebra import searched_experts
from search.calibration import calibrated
from search.checks.findings import Findings
from search.checks.subject import read_subject
from search.config import load_config, resolved_yaml
from search.errors import SearchError
from search.optimizers.contract import Genome
from search.positions import YamlSource
from search.schema import Config
from search.space import Bounds, Space, SpaceError, mixed
from search.stages import Stage, build_stages, translate
from search.virtual import derived_of, experts_of, made_of, modelled

GROUPS = [Group("embedding"), Group("norm"), Group("head")]
GROUPS += [Group(kind, depth) for depth in range(4) for kind in ("attention", "mlp", "norm")]
EXPERTS = ("ls", "gr", "gs")
REFS = {alias: SourceRef(alias, f"sha256:{alias}") for alias in ("base", *EXPERTS)}
ANALOGY = "ls + a*(gr - gs)"


def space(expression: str, variables: dict[str, tuple[float, float]], **more: Any) -> Space:
    taking, mixing = mixed(expression, {name: Bounds(*ends) for name, ends in variables.items()}, EXPERTS)
    settled: dict[str, Any] = {"granularity": "model", "kinds": [[kind] for kind in ("attention", "mlp", "norm")]}
    settled["kinds"] += [["embedding", "head"]]
    settled |= {"coefficient": Bounds(0.0, 1.0), "methods": ("task_arithmetic",)} | more
    return Space(base="base", sources=REFS, experts=EXPERTS, groups=GROUPS, taking=taking, mixing=mixing, **settled)


def own(found: Space, genome: Genome, group: Group = GROUPS[4]) -> dict[str, float]:
    sources = found.decode(genome).groups[group].sources
    return {alias: float(dict(values)["coefficient"]) for alias, values in sources}


def test_a_variable_moves_all_experts_that_it_stands_with() -> None:
    found = space(ANALOGY, {"a": (0.0, 2.0)})
    assert [gene.name for gene in found.genes] == ["a"] and found.box.continuous == 1
    assert own(found, found.uniform({"a": 0.8})) == {"ls": 1.0, "gr": 0.8, "gs": -0.8}
    assert own(found, found.uniform({"a": 0.0})) == {"ls": 1.0}  # what cancels is left out
    assert own(found, found.center()) == {"ls": 1.0, "gr": 1.0, "gs": -1.0}
    assert found.named(found.uniform({"a": 0.3})) == {"a": 0.3}


def test_every_knot_and_kind_has_a_variable_of_its_own() -> None:
    from search.space import Knots

    found = space("(1 - a)*ls + a*gr + b*gs", {"a": (0.0, 1.0), "b": (-1.0, 1.0)}, granularity=Knots(2))
    names = [gene.name for gene in found.genes]
    assert names[:2] == ["a.attention@knot0", "a.attention@knot1"] and names[-1] == "b.embedding+head"
    values = dict.fromkeys(names, 0.5) | {"a.attention@knot0": 0.0, "a.attention@knot1": 0.9, "b.attention@knot1": 1.0}
    recipe = found.decode(Genome(tuple(values[name] for name in names), ()))
    at = {depth: dict(recipe.groups[Group("attention", depth)].sources) for depth in range(4)}
    for depth in range(4):  # a rises from 0 to 0.9 over the four depths, b from 0 to 1
        a, b = 0.3 * depth, depth / 3
        wanted = {"ls": 1 - a, "gr": a, "gs": b}
        got = {alias: dict(at[depth].get(alias, (("coefficient", 0.0),)))["coefficient"] for alias in EXPERTS}
        assert got == pytest.approx(wanted, abs=1e-8)


FORMS = st.sampled_from(
    [
        (ANALOGY, {"a": (0.0, 1.5)}),
        ("(1 - a)*ls + a*gr", {"a": (0.0, 1.0)}),
        ("a*ls + b*gr + (a - b)*gs", {"a": (-1.0, 2.0), "b": (0.0, 0.3)}),
        ("base - a*gs", {"a": (0.0, 2.0)}),
        ("ls/3 + 0.07*a*(gr - gs) + b*ls", {"a": (-5.0, 5.0), "b": (0.1, 0.9)}),
    ]
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(FORMS, st.sampled_from(["model", "layer", "knots", "lines", "blocks"]), st.data())
def test_a_recipe_leads_back_to_its_genome(
    form: tuple[str, dict[str, tuple[float, float]]], how: str, data: st.DataObject
) -> None:
    """Whatever the expression and the granularity: encoding a decoded genome gives the same recipe."""
    from search.space import Knots, PlacedBlocks

    granularity: Any = {"knots": Knots(3), "blocks": PlacedBlocks({"": (0, 3)})}.get(how, how)
    found = space(*form, granularity=granularity, methods=("task_arithmetic", "ties"), method_blocks=2)
    box = found.box
    genes = st.floats(0.0, 1.0)
    values = tuple(data.draw(st.lists(genes, min_size=box.continuous, max_size=box.continuous)))
    choices = tuple(data.draw(st.integers(0, size - 1)) for size in box.categories)
    genome = Genome(values, choices)
    recipe = found.decode(genome)
    assert found.decode(found.encode(recipe)).hash == recipe.hash
    assert found.decode(found.canonical(genome)).hash == recipe.hash
    table = found.table(recipe)
    assert list(table) == list(EXPERTS)  # also of those that take no part: reports have one table for all stages


@pytest.mark.parametrize(
    ("expression", "variables", "message"),
    [
        ("ls + a*gx", {"a": (0.0, 1.0)}, "names the model 'gx'"),
        ("ls + gr", {"a": (0.0, 1.0)}, "found none of a"),
        ("ls + a*gr + a*b*gs", {"a": (0.0, 1.0), "b": (0.0, 1.0)}, "multiplies variables with each other"),
        ("(a + b)*ls", {"a": (0.0, 1.0), "b": (0.0, 1.0)}, "only act together"),
        ("ls + gr*ls", {"a": (0.0, 1.0)}, "multiplies models"),
        ("ls*gr", {"gr": (0.0, 1.0)}, "is a variable of the expression"),
        ("ls + a", {"a": (0.0, 1.0)}, "a number or a variable that no model is multiplied by"),
        ("ls + lambda*gr", {"lambda": (0.0, 1.0)}, "'lambda' has a meaning of its own in expressions"),
        ("method*ls", {"method": (0.0, 1.0)}, "other than base, coefficient, density, method"),
        ("a*base + ls", {"a": (0.0, 1.0)}, "expected 'base' in 'a*base + ls' once"),
        ("ls/a", {"a": (0.0, 1.0)}, "divides by a"),
    ],
)
def test_expressions_that_cannot_be_searched(expression: str, variables: dict[str, Any], message: str) -> None:
    with pytest.raises(SpaceError) as caught:
        mixed(expression, {name: Bounds(*ends) for name, ends in variables.items()}, EXPERTS)
    assert message in str(caught.value)


def test_the_range_of_a_coefficient_is_that_of_its_corners() -> None:
    _, mixing = mixed("(a - 2*b)*ls + b*gr + gs", {"a": Bounds(-1.0, 1.0), "b": Bounds(0.0, 3.0)}, EXPERTS)
    assert [mixing.range_of(expert) for expert in range(3)] == [(-7.0, 1.0), (0.0, 3.0), (1.0, 1.0)]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.floats(-2.0, 2.0), min_size=2, max_size=2))
def test_variables_are_read_back_from_coefficients(values: list[float]) -> None:
    _, mixing = mixed("a*ls + b*(gr - ls) + 0.3*gs", {"a": Bounds(-2, 2), "b": Bounds(-2, 2)}, EXPERTS)
    settled = mixing.settled(np.array(values))
    assert np.array_equal(mixing.read(mixing.coefficients(settled)), settled)


# -- in a config ------------------------------------------------------------------------------------------------------

CONFIG = """\
name: algebra
models:
  base: base
  experts:
    ls: ls
    gr: gr
    gs: gs
  derived:
    real: ls + 0.8*(gr - gs)
    clean: base - 1.0*gs
    both: real + clean
evaluators:
  real: {type: exact_match, data: data}
  other: {type: exact_match, data: data}
objectives: [real.accuracy, {metric: other.accuracy, expert: clean}]
space:
  granularity: {knots: 2}
search:
  budget: {candidates: 60}
"""


def loaded(folder: Path, *changes: tuple[str, str]) -> Config:
    text = CONFIG
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (folder / "config.yaml").write_text(text)
    return load_config(folder / "config.yaml").config


def stages_of(config: Config) -> list[Stage]:
    refs = REFS | {alias: SourceRef("", f"sha256:{alias}") for alias in experts_of(config)}
    return build_stages(config, GROUPS, refs)


KNOTS = "  granularity: {knots: 2}\n"
SEARCHED = "  expression: real + u*(gr - gs)\n  variables: {u: [-0.8, 0.5]}\n"

WRONG = {
    "an unknown name": (("0.8*(gr - gs)", "0.8*(gr - gx)"), "9:11: models.derived.real: the expression"),
    "a circle": (("base - 1.0*gs", "both - real"), "found a circle: clean -> both -> clean"),
    "itself": (("base - 1.0*gs", "clean + gs"), "10:12: models.derived.clean: expected derived experts that lead back"),
    "an expert's name": (("    clean:", "    ls:"), "models.derived.ls: 'ls' is the name of an expert"),
    "the base's name": (("    clean:", "    base:"), "models.derived.base: 'base' is the name of the base model"),
    "nothing but the base": (("base - 1.0*gs", "base + gs - gs"), "models.derived.clean: this is the base itself"),
    "a circle behind an expression": (
        ("evaluators:\n  real", "    loop: loop + gs\nevaluators:\n  real"),
        "models.derived.loop: expected derived experts that lead back",
    ),
    "a name that is a number": (("    clean:", "    7:"), "models.derived.7: "),
    "no text": (("base - 1.0*gs", "3"), "models.derived.clean: "),
    "a virtual one inside": (
        ("evaluators:", "  virtual: {mean: {method: linear}}\nevaluators:"),
        None,
    ),
    "an unknown skill": (("expert: clean", "expert: claen"), "there is no expert 'claen'; there are: ls, gr, gs, real"),
    "no variable": ((KNOTS, "  expression: real\n"), "space.expression: nothing in it is searched"),
    "no expression": ((KNOTS, "  variables: {a: [0, 1]}\n"), "space.variables: there is no expression"),
    "bounds of its own": ((KNOTS, SEARCHED + "  coefficient: [0, 1]\n"), "space.coefficient: the expression says how"),
    "a variable upside down": (
        (KNOTS, "  expression: u*ls\n  variables: {u: [1, 0]}\n"),
        "expected [low, high] with low < high for u",
    ),
    "a variable without bounds": (
        (KNOTS, "  expression: u*ls\n  variables: {u: 1}\n"),
        "expected [low, high] with low < high for u, from -1000 to 1000, found 1",
    ),
    "a variable without end": ((KNOTS, "  expression: u*ls\n  variables: {u: [0, 1e301]}\n"), "found [0, '1e301']"),
    "a method without coefficients": (
        (KNOTS, SEARCHED + "  methods: [model_stock]\n"),
        "space.methods.0: an expression gives coefficients, and model_stock takes none",
    ),
    "an expert that there is not": ((KNOTS, "  experts: [ls, reel]\n"), "there is no expert 'reel'"),
    "an expert twice": ((KNOTS, "  experts: [ls, gr, ls]\n"), "space.experts.2: the expert 'ls' is named twice"),
}


def test_bounds_and_names_of_variables_are_read_as_people_write_them(tmp_path: Path) -> None:
    text = "  expression: |\n    ls\n    + µ*gr\n  variables: {µ: [1e-3, 1]}\n"
    config = loaded(tmp_path, (KNOTS, text))
    assert list(config.space.variables.values()) == [(0.001, 1.0)]  # YAML reads 1e-3 as a text
    taking, mixing = searched_experts(config)  # and the parser the micro sign as the letter
    assert taking == ("ls", "gr") and mixing is not None


@pytest.mark.parametrize(("change", "says"), WRONG.values(), ids=WRONG.keys())
def test_what_is_wrong_is_said_with_its_place(change: tuple[str, str], says: str | None, tmp_path: Path) -> None:
    if says is None:
        assert loaded(tmp_path, change)
        return
    searched = () if change[0] == KNOTS else ((KNOTS, KNOTS + SEARCHED),)
    for more in ((), searched):  # also where an expression of the space names them
        with pytest.raises(SearchError) as caught:
            loaded(tmp_path, change, *more)
        assert says in str(caught.value) and "config.yaml:" in str(caught.value)


def test_a_derived_expert_is_an_expert_of_the_search(tmp_path: Path) -> None:
    """It is made where it has coefficients of its own, and its baseline is labelled as an expert's, so that retention
    is measured against it."""
    config = loaded(tmp_path)
    assert experts_of(config) == (*EXPERTS, "real", "clean", "both")
    made = derived_of(config)
    assert made["real"].coefficients == {"ls": 1.0, "gr": 0.8, "gs": -0.8}
    assert made["both"].coefficients == {"ls": 1.0, "gr": 0.8, "gs": -1.8}
    baselines = stages_of(config)[0]
    labels = [label for label, _ in baselines.fixed]
    assert labels[:7] == ["base", *(f"expert {name}" for name in (*EXPERTS, "real", "clean", "both"))]


def test_what_is_not_searched_is_written_out_and_never_made(tmp_path: Path) -> None:
    config = loaded(tmp_path, (KNOTS, KNOTS + "  experts: [ls, real]\n"))
    assert modelled(config) == ("real",)
    baselines, per_expert, full = stages_of(config)
    recipes = {label: baselines.space.decode(genome) for label, genome in baselines.fixed}
    group = recipes["expert clean"].groups[GROUPS[4]]
    assert group.sources == (("gs", (("coefficient", -1.0),)),)
    assert {gene.expert for gene in full.space.genes} == {"ls", "real"}
    # what only others could say is no point of the full space; what the two can say is
    known = {label: translate(genome, baselines.space, per_expert.space) for label, genome in baselines.fixed}
    assert known["expert gr"] is None and known["expert real"] is not None
    assert list(full.space.table(recipes["expert gr"])) == [*EXPERTS, "real"]


def test_an_expression_is_searched_from_its_own_variables(tmp_path: Path) -> None:
    config = loaded(tmp_path, (KNOTS, KNOTS + SEARCHED))
    assert modelled(config) == () and experts_of(config) == EXPERTS  # nothing has to be made
    baselines, per_expert, full = stages_of(config)
    assert [gene.name for gene in per_expert.space.genes] == ["u"]
    recipe = per_expert.space.decode(per_expert.space.uniform({"u": -0.8}))
    assert recipe.groups[GROUPS[4]].sources == (("ls", (("coefficient", 1.0),)),)
    fixed = dict(baselines.fixed)
    assert translate(fixed["expert ls"], baselines.space, per_expert.space) == per_expert.space.uniform({"u": -0.8})
    assert translate(fixed["expert real"], baselines.space, full.space) is not None
    assert translate(fixed["average"], baselines.space, full.space) is None
    # what was learnt with one u for all is known to the finer space
    found = per_expert.space.uniform({"u": 0.25})
    finer = translate(found, per_expert.space, full.space)
    assert finer is not None and full.space.decode(finer).hash == per_expert.space.decode(found).hash


def test_the_config_reads_back_and_says_nothing_where_nothing_was_said(tmp_path: Path) -> None:
    config = loaded(tmp_path, (KNOTS, KNOTS + SEARCHED))
    (tmp_path / "resolved.yaml").write_text(resolved_yaml(config))
    assert load_config(tmp_path / "resolved.yaml").config == config
    assert Config.model_validate(config.model_dump(mode="json")) == config
    text = CONFIG[: CONFIG.index("  derived:")] + CONFIG[CONFIG.index("evaluators:") :].replace("expert: clean", "")
    (tmp_path / "plain.yaml").write_text(text.replace("{metric: other.accuracy, }", "other.accuracy"))
    plain = resolved_yaml(load_config(tmp_path / "plain.yaml").config)
    assert not {"derived", "expression", "variables"} & set(plain.replace(":", " ").split())


@pytest.mark.parametrize("method", ["task_arithmetic", "regmean"])
@pytest.mark.parametrize("case", [name for name in WRONG if WRONG[name][1] is not None])
def test_a_check_looks_at_the_rest_of_a_config_whose_algebra_is_wrong(case: str, method: str, tmp_path: Path) -> None:
    """Whatever is wrong with expressions, what they come to is never asked for."""
    text = CONFIG
    change = WRONG[case][0]
    searched = KNOTS + SEARCHED + f"  methods: [{method}]\n"
    text = text.replace(*change) if change[0] == KNOTS else text.replace(*change).replace(KNOTS, searched)
    (tmp_path / "config.yaml").write_text(text)
    source = YamlSource(tmp_path / "config.yaml")
    findings = Findings(source)
    subject = read_subject(source, findings)
    assert subject is not None and findings.errors
    if change[0] == KNOTS:  # an expression and its variables are one thing: said once, whichever of them is wrong
        assert findings.errors == 1
    made_of(subject.config), searched_experts(subject.config), calibrated(subject.config)
