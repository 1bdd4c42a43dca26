"""The matrix methods' experiments: what is chosen, kept and averaged. No model is loaded."""

from __future__ import annotations

import math
import statistics
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.matrix import sizes, tables
from experiments.matrix.arms import METHODS, Arm, searches
from experiments.matrix.bench import drawn
from experiments.matrix.families import FAMILIES, at_seed
from experiments.matrix.records import Outcome, Records

ROOT = Path(__file__).parents[2]


def outcome(arm: str, seed: int, *utilities: float, ours: bool = False, **chosen: object) -> Outcome:
    return Outcome("skills", seed, arm, {}, utilities, utilities, chosen, 10, 1.0, ours)


def test_an_estimate_is_the_mean_and_its_standard_error() -> None:
    found = tables.Estimate.of([1.0, 2.0, 6.0])
    assert found.mean == pytest.approx(3.0)
    assert found.error == pytest.approx(statistics.stdev([1.0, 2.0, 6.0]) / math.sqrt(3))
    assert found.text() == "3.0 ± 1.5" and found.text("+") == "+3.0 ± 1.5"
    assert tables.Estimate.of([2.0]).text() == "2.0"
    assert tables.Estimate.of([]).text() == "–"


@given(st.dictionaries(st.integers(0, 5), st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2))
def test_differences_are_paired_by_seed(pairs: dict[int, tuple[float, float]]) -> None:
    """What the seeds share cancels: the error is that of the differences, not of the scores."""
    one = {seed: outcome("one", seed, a) for seed, (a, _) in pairs.items()}
    other = {seed: outcome("other", seed, b) for seed, (_, b) in pairs.items()}
    found = tables.difference(one | {9: outcome("one", 9, 1.0)}, other, lambda each: each.mean)
    apart = [100 * (a - b) for a, b in pairs.values()]
    assert found.count == len(pairs)
    assert found.mean == pytest.approx(statistics.fmean(apart), abs=1e-9)
    assert found.error == pytest.approx(statistics.stdev(apart) / math.sqrt(len(apart)), abs=1e-9)


def test_the_rival_is_the_best_complete_merge_without_matrix_methods() -> None:
    arms = {"average": 0.4, "single λ": 0.6}
    found = [outcome(arm, seed, value) for arm, value in arms.items() for seed in (0, 1)]
    found += [outcome("expert math", seed, 0.9) for seed in (0, 1)]
    found += [outcome("RegMean", seed, 0.8, ours=True) for seed in (0, 1)]
    found += [outcome("TIES", 0, 0.7)]  # not on every seed
    assert tables.best_baseline(found) == "single λ"
    assert tables.best_baseline(each for each in found if each.ours) is None


def test_a_familys_table_holds_what_was_measured() -> None:
    found = [outcome("expert math", 0, 0.9, 0.0), outcome("expert math", 1, 0.9, 0.0)]
    found += [outcome("average", 0, 0.4, 0.6), outcome("average", 1, 0.2, 0.4)]
    found += [outcome("RegMean", 0, 0.6, 0.7, ours=True), outcome("RegMean", 1, 0.5, 0.6, ours=True, alpha=0.5)]
    rows = {line.split("|")[1].strip(): line for line in tables.family_table(found).splitlines()[2:]}
    assert list(rows) == ["expert math", "**average**", "RegMean"]
    assert rows["**average**"].startswith("| **average** | 40.0 ± 10.0 | 30.0 ± 10.0 |  |  |")
    assert rows["RegMean"].startswith("| RegMean | 60.0 ± 5.0 | 55.0 ± 5.0 | +20.0 ± 5.0 | +15.0, +25.0 | 10 | 1 |")
    assert "+" not in rows["expert math"]  # an expert alone is no merge
    assert tables.choices_table(found).splitlines()[2:] == ["| RegMean |  | alpha 0.5 |"]
    assert tables.across(found, "RegMean", "average") == pytest.approx((20.0, 5.0, 2))


def test_every_line_of_a_table_has_its_columns() -> None:
    found = [outcome("average", seed, 0.4) for seed in (0, 1, 2)] + [outcome("RegMean", 0, 0.5, ours=True, alpha=1.0)]
    for text in (tables.family_table(found), tables.choices_table(found), sizes.table(found)):
        assert len({line.count("|") for line in text.splitlines()}) == 1


def test_records_go_on_where_they_were(tmp_path: Path) -> None:
    records = Records(tmp_path / "work")
    first, second = outcome("average", 0, 0.25, 0.5), outcome("RegMean", 0, 0.5, 1.0, ours=True, alpha=0.9)
    records.settings({"items": 256})
    records.add(first)
    records.add(second)
    again = Records(tmp_path / "work")
    again.settings({"items": 256})
    assert again.read("skills", 0) == {"average": first, "RegMean": second}
    assert again.read("skills", 1) == {} and again.read("digits", 0) == {}
    better = outcome("average", 0, 0.75, 0.75)
    again.add(better)
    again.add(outcome("average", 1, 0.5))
    assert [each.mean for each in records.all(FAMILIES, (0, 1))] == [75.0, 75.0, 50.0]
    with pytest.raises(SystemExit, match="other settings"):
        records.settings({"items": 64})
    assert not list((tmp_path / "work").glob("*.partial"))


def test_an_arm_says_which_parameters_are_each_sources() -> None:
    arms = {arm.title: arm for arm in METHODS}
    mean = arms["average"].assignment(["a", "b", "c", "d"], {})
    assert mean.sources == tuple((alias, (("coefficient", 0.25),)) for alias in "abcd")
    ties = arms["TIES"].assignment(["a", "b"], {"scale": 0.5})
    assert dict(ties.parameters) == {"scale": 0.5}
    assert dict(ties.sources[0][1]) == {"coefficient": 1.0, "density": 0.2}
    tuned = arms["TIES"].assignment(["a"], {"density": 0.5})
    assert dict(tuned.sources[0][1])["density"] == 0.5  # what was chosen wins
    assert arms["TIES"].preset.steps == () and arms["TIES"].preset.title == "TIES, preset"


@pytest.mark.parametrize("arm", METHODS, ids=lambda arm: arm.title)
def test_grids_hold_values_that_the_method_takes(arm: Arm) -> None:
    from merging.methods.contract import CALIBRATION
    from merging.methods.registry import canonical, get

    fingerprint = {CALIBRATION.name: "sha256:0"} if get(arm.method).needs.calibration else {}
    for name, grid in arm.steps or ((None, (None,)),):
        for value in grid:
            chosen = {} if name is None else {name: value}
            spelled = canonical(arm.assignment(["a", "b"], {**chosen, **fingerprint}))  # type: ignore[dict-item]
            assert spelled.method == arm.method
    defaults = {each.name: each.default for each in get(arm.method).parameters} | dict(arm.fixed)
    if arm.title != "single λ":
        assert all(defaults[name] in grid for name, grid in arm.steps)  # the preset is never missed


def test_searches_differ_in_what_they_are_said_to() -> None:
    arms = searches(["regmean", "wudi"])
    assert len({arm.title for arm in arms}) == 4
    assert [arm.ours for arm in arms] == [False, False, True, True]
    assert [arm.changes for arm in arms[:2]] == [arm.changes for arm in arms[2:]]
    assert searches(()) == arms[:2]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_familys_config_is_of_the_training_seed_and_limits(family: str) -> None:
    loaded = FAMILIES[family].load(ROOT, 2, ["space.granularity=model"])
    config = loaded.config
    for reference in (config.models.base, *config.models.experts.values()):
        assert reference.startswith("zoo://") and "@2/" in reference
    assert all(each["limit"] == FAMILIES[family].limits for each in config.evaluators.values())
    assert config.search.budget.candidates == FAMILIES[family].candidates
    assert config.space.granularity == "model"
    known = {*config.evaluators, *FAMILIES[family].extra}
    assert all(FAMILIES[family].asked(expert) in known for expert in config.models.experts)


def test_a_reference_gets_its_seed() -> None:
    assert at_seed("zoo://skills/base", 0) == "zoo://skills@0/base"
    assert at_seed("zoo://skills@1/data/string", 2) == "zoo://skills@2/data/string"


def test_more_inputs_hold_the_fewer() -> None:
    ids = [f"item-{number}" for number in range(50)]
    assert drawn(ids, 10, 3) == drawn(ids, 30, 3)[:10]
    assert sorted(drawn(ids, None, 3)) == sorted(ids)
    assert drawn(ids, 10, 3) != drawn(ids, 10, 4)


@given(st.integers(1, 1000), st.integers(1, 9))
def test_a_mixture_is_in_equal_parts(count: int, parts: int) -> None:
    found = sizes.divided(count, parts)
    assert sum(found) == count and len(found) == parts and max(found) - min(found) <= 1


def test_the_table_of_sizes_averages_draws_within_seeds() -> None:
    def of(seed: int, draw: int, value: float) -> Outcome:
        return outcome(f"own {draw}", seed, value, ours=True, kind="own", count=10, draw=draw)

    found = [outcome("average", 0, 0.3), outcome("average", 1, 0.5)]
    found += [of(0, 0, 0.4), of(0, 1, 0.6), of(1, 0, 0.7), of(1, 1, 0.7)]
    assert sizes.table(found).splitlines()[2:] == [
        "| average |  | 40.0 ± 10.0 |  |",
        f"| own | 10 | 60.0 ± 10.0 | {statistics.fmean([statistics.stdev([40, 60]), 0.0]):.1f} |",
    ]
    titles = [case.title for case in sizes.cases("digits", 2)]
    assert len(titles) == len(set(titles)) == 2 * (len(sizes.COUNTS["digits"]) + len(sizes.KINDS) - 1)
