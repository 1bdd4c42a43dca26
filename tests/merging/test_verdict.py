"""The verdict in words: planted diagnoses say what was planted, and curves outweigh weights."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from types import ModuleType

import pytest

from merging.diagnose.curves import Barrier, LambdaCurve, Redundancy
from merging.diagnose.evidence import steepness
from merging.diagnose.probes import ActivationCheck, BlockCheck
from merging.diagnose.regions import regions
from merging.diagnose.results import Diagnosis, Measures, Settings
from merging.diagnose.rules import conflict_share, full_lambda, number, span
from merging.diagnose.verdicts import CAVEAT, Verdict, verdict
from merging.recipe import Group

AB = ("a", "b")
CHANCE = 0.2 / 1.8


def measures(
    elements: int = 1000,
    ratio: float = 0.02,
    cosine: float = 0.0,
    conflict: float = 0.5,
    factor: float = 1.0,
    **more: object,
) -> Measures:
    """Of two experts, ‖θ0‖ = 10: b's norm is ``factor`` times a's ``ratio``·10."""
    return Measures(
        elements=elements,
        base_norm=10.0,
        norm={"a": 10 * ratio, "b": 10 * ratio * factor},
        norm_ratio={"a": ratio, "b": ratio * factor},
        changed={"a": 1.0, "b": 1.0},
        cosine={AB: cosine},
        pearson={AB: cosine},
        sign_conflict={AB: conflict, "all": conflict},
        sign_conflict_weighted={AB: conflict / 2, "all": conflict / 2},
        overlap={AB: CHANCE},
        overlap_chance={AB: CHANCE},
        overlap_lift={AB: 1.0},
        **more,  # type: ignore[arg-type]
    )


def diagnosis(whole: Measures | None = None, groups: dict[Group, Measures] | None = None) -> Diagnosis:
    whole = measures() if whole is None else whole
    held = {Group("mlp", depth): measures(100) for depth in range(10)} if groups is None else groups
    depths = {("", depth): measures(200) for depth in range(10)}
    references = {alias: alias for alias in ("base", *AB)}
    return Diagnosis(AB, references, {}, Settings(), whole, {}, depths, held, {}, {})


@dataclass(frozen=True)
class Drawn:
    lambdas: tuple[LambdaCurve, ...] = ()
    barriers: tuple[Barrier, ...] = ()
    redundancies: tuple[Redundancy, ...] = ()
    activations: ActivationCheck | None = None


def kinds(found: Verdict) -> dict[str, str]:
    return {each.kind: each.effect for each in found.reasons}


def test_small_orthogonal_vectors_with_little_conflict_are_likely_to_merge() -> None:
    found = verdict(diagnosis())
    assert found.level == "likely"
    assert found.headline == "Small, orthogonal, little conflict: task arithmetic is likely to do."
    assert kinds(found) == {"size": "good", "direction": "good", "conflict": "good"}
    assert found.suggested.method == "task_arithmetic" and found.suggested.start == 0.8
    assert found.suggested.coefficient == (0.0, 1.5) and not found.suggested.separate
    assert found.advice[-1] == CAVEAT


def test_conflict_in_some_layers_is_named_and_given_a_block() -> None:
    # Layers 4 to 6 conflict at every shared position, and share twice what chance gives.
    hot = replace(measures(100, conflict=1.0), overlap={AB: 2 * CHANCE})
    groups = {Group("mlp", depth): hot if 4 <= depth <= 6 else measures(60) for depth in range(10)}
    groups |= {Group("attention", depth): measures(50) for depth in range(10)}
    found = verdict(diagnosis(measures(sum(each.elements for each in groups.values())), groups))
    assert found.headline.endswith("conflict is concentrated in layers 4–6 MLP: give those a block of their own.")
    assert found.suggested.separate == ("layers 4–6 MLP",)
    local = [each for each in found.reasons if each.where]
    assert [each.value for each in local] == [pytest.approx(2 * CHANCE)] and found.level == "likely"


def test_what_is_everywhere_stands_out_nowhere_and_what_is_tiny_is_noise() -> None:
    hot = replace(measures(100, conflict=1.0), overlap={AB: 0.5})
    everywhere = diagnosis(measures(400), dict.fromkeys((Group("mlp", 0), Group("mlp", 1), Group("attention", 0)), hot))
    assert verdict(everywhere).suggested.separate == ()
    tiny = diagnosis(measures(100_000), {Group("norm", 3): hot, Group("mlp", 3): measures(99_900)})
    assert verdict(tiny).suggested.separate == ()
    other = {Group("attention", 2, "encoder"): hot, Group("embedding"): hot, Group("mlp", 0, "encoder"): measures(900)}
    named = verdict(diagnosis(measures(1100), other)).suggested.separate
    assert set(named) == {"layer 2 attention of encoder", "the embedding"}


def test_runs_of_depths_are_cut_where_one_is_missing() -> None:
    groups = {Group("mlp", depth): measures(10, ratio=0.5 if depth in {1, 2, 4} else 0.01) for depth in range(9)}
    found = regions(diagnosis(measures(90), groups), lambda each: max(each.norm_ratio.values()), 0.4)
    assert [(each.first, each.last) for each in found] == [(1, 2), (4, 4)]
    assert found[0].share == pytest.approx(20 / 90)


@pytest.mark.parametrize(
    ("whole", "level", "words"),
    [
        (measures(ratio=0.2), "uncertain", "Large, orthogonal, little conflict"),
        (measures(ratio=0.05, factor=4.0), "unlikely", "Large, unequal"),
        (measures(ratio=0.02, factor=4.0), "uncertain", "Small, unequal"),
        (measures(cosine=-0.4), "uncertain", "Small, opposed"),
        (measures(ratio=0.2, cosine=0.8), "likely", "Large, alike"),
        (measures(cosine=0.3), "likely", "Small, partly aligned"),
        (measures(ratio=0.9), "unlikely", "Far from the base"),
        (replace(measures(conflict=1.0), overlap={AB: 0.3}), "uncertain", "Small, orthogonal, much conflict"),
        (
            measures(ratio=0.2, alignment={"a": 0.7, "b": 0.95}, interference_ratio=1.0, interference=1.0),
            "unlikely",
            "Large, orthogonal, little conflict, a poorly served",
        ),
    ],
)
def test_concerns_are_counted(whole: Measures, level: str, words: str) -> None:
    found = verdict(diagnosis(whole))
    assert found.level == level and found.headline.startswith(words)
    if "opposed" in words:
        assert found.suggested.coefficient[0] < 0.0
    if "much conflict" in words:
        assert found.suggested.method == "ties"
    if "Far" in words:
        assert any("config.json" in each for each in found.advice)


def test_the_coefficient_of_the_geometry() -> None:
    assert full_lambda(measures(), AB, [AB]) == pytest.approx(1.0), "orthogonal: all of each"
    assert full_lambda(measures(cosine=1.0), AB, [AB]) == pytest.approx(0.5), "equal: the mean"
    assert full_lambda(measures(cosine=0.6), AB, [AB]) == pytest.approx(1 / 1.6)
    assert full_lambda(measures(cosine=-1.0), AB, [AB]) == 1.5, "opposed: bounded"
    # 4 and 1, cosine ½: (16 + 1)/(16 + 1 + 4).
    assert full_lambda(measures(cosine=0.5, factor=0.25), AB, [AB]) == pytest.approx(17 / 21)


def test_the_share_of_conflicts_is_that_of_counted_positions() -> None:
    # Of 30 positions that one or both keep, 6 are kept by both, 3 with opposite signs.
    counted = replace(measures(), overlap={AB: 6 / 30}, sign_conflict={AB: 3 / 6})
    assert conflict_share(counted, AB) == pytest.approx(3 / 30)
    assert conflict_share(replace(counted, overlap={}), AB) is None
    disjoint = replace(counted, overlap={AB: 0.0}, sign_conflict={})
    assert conflict_share(disjoint, AB) == 0.0


def test_an_expert_that_is_the_base_and_a_single_expert() -> None:
    same = verdict(
        diagnosis(replace(measures(), norm={"a": 0.2, "b": 0.0}, norm_ratio={"a": 0.02, "b": 0.0}, cosine={}))
    )
    assert same.level == "uncertain" and "b: exactly the base" in same.reasons[0].text
    one = measures()
    one = replace(one, norm={"a": 0.2}, norm_ratio={"a": 0.02}, changed={"a": 0.3}, cosine={}, overlap={})
    alone = verdict(replace(diagnosis(one, {}), aliases=("a",), depths={}))
    assert alone.level == "likely" and "adding this task vector" in alone.headline and alone.suggested.start == 1.0
    assert "sparsity" in kinds(alone)


def test_curves_outweigh_weights() -> None:
    barrier = Barrier("a", "b", (0.0, 0.5, 1.0), (1.0, 3.0, 1.0))
    risen = verdict(diagnosis(), Drawn(barriers=(barrier,)))
    assert risen.level == "uncertain" and kinds(risen)["barrier"] == "bad" and CAVEAT not in risen.advice
    flat = Barrier("a", "b", (0.0, 0.5, 1.0), (1.0, 0.9, 1.0))
    large = diagnosis(measures(ratio=0.2))
    assert verdict(large).level == "uncertain" and verdict(large, Drawn(barriers=(flat,))).level == "likely"
    assert verdict(large, Drawn(barriers=(barrier,))).level == "unlikely"
    # From the base to an expert there is no barrier between two experts.
    from_base = replace(barrier, first="base")
    assert "barrier" not in kinds(verdict(large, Drawn(barriers=(from_base,))))
    broken = Barrier("a", "b", (0.0, 0.5, 1.0), (1.0, math.nan, 1.0))
    assert verdict(diagnosis(), Drawn(barriers=(broken,))).level == "unlikely"


def test_the_measured_coefficient_is_where_to_start() -> None:
    curve = LambdaCurve(AB, (0.0, 0.4, 1.0), (0.2, 0.7, 0.5))
    found = verdict(diagnosis(), Drawn(lambdas=(curve,)))
    assert found.suggested.start == 0.4 and "best at λ = 0.4 (score 0.700, the base 0.200)" in found.reasons[0].text
    useless = verdict(diagnosis(), Drawn(lambdas=(replace(curve, scores=(0.9, 0.7, 0.5)),)))
    assert useless.level == "uncertain" and "no better than the base" in useless.headline
    edge = verdict(diagnosis(), Drawn(lambdas=(replace(curve, scores=(0.1, 0.2, 0.5)),)))
    assert "try larger ones" in edge.reasons[0].text
    nothing = verdict(diagnosis(), Drawn(lambdas=(replace(curve, scores=(math.nan,) * 3),)))
    assert nothing.level == "unlikely"


def test_redundancy_and_collapse_in_words() -> None:
    kept = Redundancy("a", 0.1, 1.0, (0.5, 0.9), {"dare": ((1.0,), (0.99,))})
    lost = Redundancy("b", 0.1, 1.0, (0.5, 0.9), {"dare": ((0.5,), (0.1,))})
    found = verdict(diagnosis(), Drawn(redundancies=(kept, lost)))
    texts = [each.text for each in found.reasons if each.kind == "redundancy"]
    assert texts[0].startswith("a keeps 98%") and "90%" in texts[0] and "cost nothing" in texts[0]
    assert texts[1].startswith("b loses more than 2%") and "50%" in texts[1]

    def check(merged: float, finite: bool = True) -> ActivationCheck:
        variances = {"base": 1.0, "a": 2.0, "b": 2.0, "merged": merged}
        return ActivationCheck({"a": 0.5, "b": 0.5}, (BlockCheck("model.layers.7", variances, {}, finite, AB),), 8)

    fallen = verdict(diagnosis(), Drawn(activations=check(1.0)))
    assert kinds(fallen)["activation"] == "bad" and "model.layers.7 they vary 0.50 times" in fallen.reasons[0].text
    assert kinds(verdict(diagnosis(), Drawn(activations=check(1.9))))["activation"] == "good"
    assert verdict(diagnosis(), Drawn(activations=check(math.nan, False))).level == "unlikely"


def test_steepness_has_no_unit() -> None:
    line = Barrier("a", "b", (0.0, 0.5, 1.0), (1.0, 3.0, 2.0))
    assert steepness(line) == pytest.approx(1.5 / 2.0)
    assert steepness(replace(line, losses=(10.0, 30.0, 20.0))) == steepness(line)
    assert steepness(replace(line, losses=(1.0, 1.0, 1.0))) == 0.0
    assert math.isnan(steepness(replace(line, losses=(math.nan, 1.0, 1.0))))


def test_a_verdict_is_plain_json() -> None:
    data = json.loads(json.dumps(verdict(diagnosis(measures(ratio=0.2))).as_data(), allow_nan=False))
    assert data["level"] == "uncertain" and data["suggested"]["coefficient"] == [0.0, 1.5]
    assert all(each["text"].endswith(".") for each in data["reasons"]) and data["reasons"][0]["threshold"] == 0.1


def test_steps_over_depth_become_blocks() -> None:
    # From layer 6 on the task vectors are four times as large.
    found = diagnosis()
    depths = {("", depth): measures(200, ratio=0.02 if depth < 6 else 0.08) for depth in range(12)}
    stepped = verdict(replace(found, depths=depths))
    assert stepped.suggested.borders == (("", (0, 6)),)
    assert any("fall into 2 blocks, which begin at 0, 6" in each for each in stepped.advice)
    assert verdict(found).suggested.borders == ()


def test_places_outside_the_blocks_are_given_a_kind() -> None:
    hot = replace(measures(100, conflict=1.0), overlap={AB: 0.5})
    found = verdict(diagnosis(measures(1000), {Group("embedding"): hot, Group("mlp", 0): measures(900)}))
    assert found.headline.endswith("conflict is concentrated in the embedding: give it coefficients of its own.")
    assert any(each.startswith("In a search let the embedding") and "kinds" in each for each in found.advice)


def test_numbers_are_short_and_said_once() -> None:
    assert [number(each) for each in (0.2, -0.012, 0.0, 1e30)] == ["0.20", "−0.012", "0.00", "1e+30"]
    assert span([0.196, 0.1961]) == "0.20" and span([0.3, 0.2]) == "0.20 to 0.30"


def test_public_names_are_no_modules_whatever_was_imported_before() -> None:
    import merging.diagnose

    found = {name: getattr(merging.diagnose, name) for name in merging.diagnose.__all__}
    assert found["verdict"] is verdict and not any(isinstance(each, ModuleType) for each in found.values())
