"""Layers of candidates in a report: true to the recipes, in bounded room; densities, methods, single tensors."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from report_pages import Page

from merging.recipe import Assignment, Group, Recipe, SourceRef
from search.report import coefficients, layers
from search.report.coefficients import STEP, by_interest, columns_of, encode, layers_of, thinned
from search.report.facts import Facts
from search.report.layers import layers_section, letters
from search.report.section import Section
from search.results import Results
from search.space import Bounds, Space

SyntheticRun = Callable[..., Results]

SOURCES = {alias: SourceRef(alias, f"sha256:{alias}") for alias in ("base", "math", "code")}
MLP = [Group("mlp", depth) for depth in range(3)]
TENSORS = {f"mlp.{group.depth}.{name}": group for group in MLP for name in ("up", "down")}


def space() -> Space:
    return Space(
        base="base", sources=SOURCES, experts=("math", "code"), groups=MLP, granularity="model", kinds=[],
        coefficient=Bounds(0.0, 1.0), methods=["ties", "ram"], tensors=TENSORS,
    )  # fmt: skip


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, synthetic_run: SyntheticRun) -> Results:
    return synthetic_run(tmp_path_factory.mktemp("layers") / "run", candidates=24)


@pytest.fixture
def facts(results: Results) -> Facts:
    return Facts(results)


def whole(value: object, groups: int) -> list[object]:
    return list(value) if isinstance(value, list) else [value] * groups


def test_densities_and_methods_stand_beside_the_coefficients() -> None:
    ties = Assignment.of(
        "ties", {"code": {"coefficient": 0.25, "density": 0.5}, "math": {"coefficient": 1.0, "density": 0.75}}
    )
    ram = Assignment.of("ram", {"code": {}, "math": {}}, epsilon=1e-5)
    plain = Assignment.of("task_arithmetic", {"math": {"coefficient": 0.5}})
    methods: dict[str, int] = {"task_arithmetic": 0}
    found = encode(space(), Recipe("base", SOURCES, dict(zip(MLP, (ties, ram, plain), strict=True))), methods)
    assert found == {
        "c": [[1000, None, 500], [250, None, 0]],
        "d": [[750, None, None], [500, None, None]],
        "m": [1, 2, 0],
    }
    assert methods == {"task_arithmetic": 0, "ties": 1, "ram": 2}


def test_what_is_the_same_everywhere_is_said_once() -> None:
    half = Assignment.of("task_arithmetic", {"math": {"coefficient": 0.5}, "code": {"coefficient": -1.25}})
    assert encode(space(), Recipe("base", SOURCES, dict.fromkeys(MLP, half)), {}) == {"c": [500, -1250], "m": 0}


def test_tensors_of_their_own_are_averaged_and_counted() -> None:
    half, one = (Assignment.of("task_arithmetic", {"math": {"coefficient": value}}) for value in (0.5, 1.0))
    recipe = Recipe("base", SOURCES, dict.fromkeys(MLP, half), {"mlp.1.up": one})
    assert encode(space(), recipe, {}) == {"c": [[500, 750, 500], 0], "m": 0, "t": 1}


def test_letters_are_different_and_from_the_names() -> None:
    found = letters(["task_arithmetic", "ties", "dare_ties", "tall"])
    assert found["task_arithmetic"] == "T" and found["ties"] == "I" and len(set(found.values())) == 4
    assert set(letters([str(index) for index in range(60)]).values()) >= {"?"}  # more methods than letters


def test_columns_begin_outside_and_follow_the_depth() -> None:
    groups = [Group("mlp", 10, "encoder"), Group("mlp", 2), Group("embedding")]
    assert columns_of(groups) == ["outside", "2", "10"]
    assert [coefficients.row_of(each) for each in groups] == ["encoder/mlp", "mlp", "embedding"]


def test_every_candidate_is_what_its_recipe_says(facts: Facts) -> None:
    found = layers_of(facts)
    assert found is not None and not found.left_out and not found.unreadable
    results = facts.results
    assert set(found.candidates) == {each.id for each in results.candidates if each.duplicate_of is None}
    for id in found.candidates:
        recipe = results.recipe(id)
        values, methods = found.values(id, "c"), found.methods_of(id)
        for place, group in enumerate(found.groups):
            assignment = recipe.groups[group]
            given = {alias: dict(each) for alias, each in assignment.sources}
            assert methods[place] == assignment.method
            for expert, own in zip(found.experts, values, strict=True):
                assert own[place] == pytest.approx(given.get(expert, {}).get("coefficient", 0.0), abs=0.5 / STEP)
    low, high = found.ends
    every = [value for id in found.candidates for own in found.values(id, "c") for value in own if value is not None]
    assert low == min(0.0, *every) and high == max(0.0, *every)


def test_the_table_of_the_pick_is_its_recipe(facts: Facts) -> None:
    section = layers_section(facts)
    assert section is not None and facts.pick is not None
    rows = next(each for caption, each in Page(section.body).tables.items() if caption.startswith("Coefficient"))
    recipe = facts.results.recipe(facts.pick)
    assert {row[0] for row in rows[1:]} == {str(group) for group in recipe.groups}
    for group, method, *cells in rows[1:]:
        assignment = recipe.groups[Group.parse(group)]
        given = {alias: float(dict(each)["coefficient"]) for alias, each in assignment.sources}
        assert method == assignment.method
        shown = [float(cell.replace("−", "-")) for cell in cells[: len(facts.results.config.models.experts)]]
        expected = [given.get(expert, 0.0) for expert in facts.results.config.models.experts]
        assert shown == pytest.approx(expected, abs=0.0056)


def test_those_who_are_asked_for_come_first_and_room_is_kept(facts: Facts) -> None:
    results = facts.results
    order = by_interest(facts)
    assert sorted(order) == sorted(facts.candidates) and order[0] == results.chosen
    first = {results.chosen, *(each.id for each in facts.baselines), *results.front, *results.finalists}
    assert set(order[: len(first)]) == first
    every = layers_of(facts)
    assert every is not None
    size = len(json.dumps(every.candidates, separators=(",", ":")))
    few = layers_of(facts, room=size // 3)
    assert few is not None and len(json.dumps(few.candidates, separators=(",", ":"))) <= size // 3
    assert len(few.candidates) + few.left_out == len(every.candidates) > len(few.candidates)
    assert list(few.candidates) == [id for id in order if id in every.candidates][: len(few.candidates)]
    one = layers_of(facts, most=1)
    assert one is not None and list(one.candidates) == [results.chosen]


def test_a_page_that_is_too_large_takes_its_share_of_what_it_had(facts: Facts) -> None:
    every = layers_of(facts)
    assert every is not None
    fresh = Facts(facts.results)
    whole_section = layers_section(fresh)
    fresh.room = 0.5
    half = layers_section(fresh)
    assert whole_section is not None and half is not None

    def size(section: Section) -> int:
        return len(json.dumps(section.data["layers"]["candidates"], separators=(",", ":")))

    assert 0 < size(half) <= 0.5 * size(whole_section)
    assert list(half.data["layers"]["candidates"]) == [str(id) for id in thinned(every, size(half)).candidates]


def test_what_is_left_out_is_said(facts: Facts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "layers_of", lambda facts, room: layers_of(facts, room, most=5))
    section = layers_section(facts)
    assert section is not None and "candidates of 24 are left out" in section.body
    assert "paretomerge export RUN --candidate ID --out DIR" in section.body


def test_a_candidate_that_decodes_differently_is_named_and_the_others_are_drawn(facts: Facts) -> None:
    results = facts.results
    changed = [
        replace(each, recipe_hash="0" * 64) if each.id == results.chosen else each for each in results.candidates
    ]
    other = Facts(replace(results, candidates=tuple(changed)))
    section = layers_section(other)
    assert section is not None and "was scored as recipe 000000000000" in section.body
    assert results.chosen not in {int(id) for id in section.data["layers"]["candidates"]}


def test_a_repetition_shows_what_it_repeats(facts: Facts) -> None:
    results = facts.results
    last = results.candidates[-1]
    same = replace(last, id=len(results.candidates), state="duplicate", duplicate_of=last.id)
    section = layers_section(Facts(replace(results, candidates=(*results.candidates, same))))
    assert section is not None and section.data["layers"]["same"] == {str(same.id): last.id}


def test_choices_name_every_candidate_once(facts: Facts) -> None:
    section = layers_section(facts)
    assert section is not None
    data = section.data["layers"]
    ids = [id for _, each in data["choices"] for id in each]
    assert sorted(ids) == sorted(int(id) for id in data["candidates"]) and len(set(ids)) == len(ids)
    assert data["choices"][0][1][0] == facts.results.chosen


def test_code_that_came_with_the_run_is_not_run(facts: Facts) -> None:
    own = facts.results.config.space.model_copy(update={"methods": ("rules.py:mine",)})
    config = facts.results.config.model_copy(update={"space": own})
    section = layers_section(Facts(replace(facts.results, config=config)))
    assert section is not None and "would run the code of rules.py:mine" in section.body and not section.data


def test_nothing_to_show_before_the_first_score(facts: Facts) -> None:
    nothing = replace(facts.results, candidates=(), scores={split: {} for split in facts.results.scores}, chosen=None)
    assert layers_section(Facts(replace(nothing, finalists=()))) is None


def test_a_space_that_cannot_be_built_says_so(facts: Facts) -> None:
    broken = replace(facts.results, started=replace(facts.results.started, groups=["embedding"]))
    section = layers_section(Facts(broken))
    assert section is not None and "this version" in section.body and not section.data


def test_numbers_fit_what_is_drawn(facts: Facts) -> None:
    section = layers_section(facts)
    assert section is not None
    data = section.data["layers"]
    groups = len(data["groups"])
    assert len(data["places"]) == groups and len({tuple(each) for each in data["places"]}) == groups
    for each in data["candidates"].values():
        for own in each["c"]:
            values = np.array([value for value in whole(own, groups) if value is not None], dtype=float) / STEP
            assert (values >= data["ends"][0]).all() and (values <= data["ends"][1]).all()
    assert all(math.isfinite(each) for each in data["ends"])
