"""The size effect's experiment: its statistics on planted data, what is chosen, and what is kept."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import page_trend_test

from experiments.diagnosing.gaps import Records
from experiments.sizing import measure, page, picture, plan, tables
from experiments.sizing.cells import Cell, blocks, by_size, read
from experiments.sizing.measure import PART, WEIGHTS
from experiments.sizing.plan import MERGES, ONE_LAMBDA, PER_EXPERT, SIZES, SKILLS, TITLES, arms, doublings, title
from experiments.sizing.trend import detectable, exact_p, least_p, pooled_slope, trend

THREE = (6.0, 6.8, 7.7)
PLANTED = {seed: {size: 0.5 + 0.1 * seed + 0.04 * size for size in THREE} for seed in range(3)}


def test_a_planted_slope_is_found_whatever_the_seeds_levels() -> None:
    found = trend(PLANTED)
    assert found.slope == pytest.approx(0.04) and list(found.by_seed.values()) == pytest.approx([0.04] * 3)
    assert found.p == found.least == pytest.approx(2 / 6**3)  # every seed in order, or every seed reversed
    assert found.low == pytest.approx(0.04) and found.high_left == pytest.approx(0.04)
    assert found.residual == pytest.approx(0.0, abs=1e-9)


def test_seeds_of_two_sizes_take_part_and_seeds_of_one_do_not() -> None:
    made = PLANTED | {3: {6.0: 0.1, 6.8: 0.2}, 4: {6.0: 0.9}}
    found = trend(made)
    assert found.seeds == 4 and found.least == pytest.approx(2 / (6**3 * 2))
    assert found.by_seed[3] == pytest.approx(0.125) and 0.04 < found.slope < 0.06
    with pytest.raises(ValueError, match="two sizes or more"):
        trend({4: {6.0: 0.9}})


def test_two_seeds_of_two_sizes_can_show_nothing() -> None:
    made = [{0.0: 0.0, 1.0: 9.0}, {0.0: 0.0, 1.0: 9.0}]
    assert exact_p(made) == least_p(made) == 0.5
    assert detectable(made, 0.1) == math.inf


def test_no_trend_is_no_trend() -> None:
    flat = {seed: dict.fromkeys(THREE, 0.7) for seed in range(3)}
    assert trend(flat).slope == pytest.approx(0.0) and trend(flat).p == 1.0
    # One seed up, one seed down.
    made = {0: dict(zip(THREE, (0.1, 0.2, 0.3), strict=True)), 1: dict(zip(THREE, (0.3, 0.2, 0.1), strict=True))}
    assert trend(made).slope == pytest.approx(0.0) and trend(made).p == 1.0


def test_of_ranks_the_exact_test_is_pages() -> None:
    ranks = np.array([[1, 2, 3], [1, 3, 2], [2, 1, 3], [1, 2, 3]])
    made = [dict(zip((1.0, 2.0, 3.0), map(float, row), strict=True)) for row in ranks]
    one_sided = page_trend_test(ranks, method="exact").pvalue
    assert exact_p(made) == pytest.approx(2 * one_sided)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.floats(-1, 1), min_size=3, max_size=3), min_size=1, max_size=3), st.floats(-2, 2))
def test_the_level_of_a_seed_and_the_unit_do_not_matter(rows: list[list[float]], shift: float) -> None:
    made = [dict(zip(THREE, row, strict=True)) for row in rows]
    moved = [{size: value + shift * number for size, value in block.items()} for number, block in enumerate(made)]
    assert pooled_slope(moved) == pytest.approx(pooled_slope(made), abs=1e-9)
    assert least_p(made) <= exact_p(made) <= 1.0


def test_where_there_are_too_many_exchanges_some_are_drawn() -> None:
    generator = np.random.default_rng(3)
    made = [dict(enumerate(0.8 * np.arange(4) + generator.normal(size=4))) for _ in range(3)]
    assert exact_p(made, most=10_000) == pytest.approx(exact_p(made), abs=0.01)  # there are 13 824
    assert exact_p([{size: float(size) for size in range(4)}] * 3, most=1_000) >= 1e-3  # the found one counts


def test_under_the_hypothesis_small_p_are_as_rare_as_they_should_be() -> None:
    generator = np.random.default_rng(0)
    found = [
        exact_p([dict(zip(THREE, generator.normal(size=3), strict=True)) for _ in range(3)]) for _ in range(300)
    ]  # fmt: skip
    assert np.mean(np.array(found) <= 0.05) < 0.09 and np.mean(np.array(found) <= 0.5) == pytest.approx(0.5, abs=0.1)


def test_what_can_be_detected_is_detected_that_often_and_grows_with_the_noise() -> None:
    made = list(PLANTED.values())
    least = detectable(made, 0.05)
    assert detectable(made, 0.1) == pytest.approx(2 * least, rel=0.05)
    generator = np.random.default_rng(7)
    hits = [
        exact_p([{size: least * size + 0.05 * generator.normal() for size in THREE} for _ in made]) <= 0.05
        for _ in range(300)
    ]
    assert np.mean(hits) == pytest.approx(0.8, abs=0.08)


def test_every_arm_merges_all_experts_and_chooses_among_what_it_says() -> None:
    for experts in MERGES:
        found = arms(experts)
        assert tuple(found) == TITLES
        assert len(found["per expert"].candidates) == len(PER_EXPERT[len(experts)]) ** len(experts)
        for choice in found.values():
            for assignment in choice.candidates.values():
                assert {alias for alias, _ in assignment.sources} == set(experts)
    average = arms(("string", "refusal"))["average"].candidates[""]
    assert all(dict(own)["coefficient"] == 0.5 for _, own in average.sources)
    grid = arms(("string", "refusal"))["per expert, by the worst skill"]
    kept = dict.fromkeys(grid.candidates, (0.5, 0.5)) | {"0.4, 1": (1.0, 0.4), "1, 0.4": (0.6, 0.6)}
    assert grid.best(kept) == "1, 0.4" and arms(("string", "refusal"))["per expert"].best(kept) == "0.4, 1"


def rows(level: float) -> dict[str, Any]:
    """What is measured of a size and seed, made up: every merge keeps ``level`` of every skill."""
    base, own = dict.fromkeys(SKILLS, 0.2), dict.fromkeys(SKILLS, 0.7)
    alone = {"base": base} | {name: base | {name: own[name]} for name in SKILLS}
    pairs = {title(pair): dict.fromkeys(WEIGHTS, 0.1) for pair in itertools.combinations(SKILLS, 2)}
    held = dict.fromkeys(SKILLS, 0.2 + 0.5 * level)
    found: dict[str, Any] = {
        "models": {"parameters": 1, "search": alone, "holdout": alone},
        "weights": {"norm_ratio": dict.fromkeys(SKILLS, 0.15), "pairs": pairs},
    }
    for experts in MERGES:
        own_held = {name: held[name] for name in experts}
        found[title(experts)] = {arm: {"chosen": "0.8", "search": own_held, "holdout": own_held} for arm in TITLES}
    return found


def filled(folder: Path, levels: Mapping[tuple[str, int], float]) -> Records:
    records = Records(folder)
    for (name, seed), level in levels.items():
        for key, row in rows(level).items():
            records.add(PART, name, seed, key, row)
    return records


def test_retention_goes_from_records_into_tables_and_the_answer(tmp_path: Path) -> None:
    levels = {(name, seed): 0.3 + 0.1 * place + 0.05 * seed for place, name in enumerate(SIZES) for seed in range(3)}
    del levels["skills-w192", 2]
    records = filled(tmp_path, levels)
    records.add(PART, "skills-w192", 2, "models", rows(0.5)["models"])  # not measured whole
    cells = read(records, SIZES, range(5))
    assert {(cell.name, cell.seed): cell.primary() for cell in cells} == pytest.approx(levels)
    assert blocks(cells, Cell.primary)[2] == pytest.approx({doublings(SIZES[0]): 0.4, doublings(SIZES[1]): 0.5})
    assert by_size(cells, Cell.norm_ratio)["skills-w64"] == pytest.approx([0.15] * 3)
    lines = tables.seeds_table(cells).splitlines()
    assert lines[0] == "| seed | width 64 | width 112 | width 192 |" and lines[4] == "| 2 | 40.0 | 50.0 | – |"
    assert lines[5] == "| mean ± sd | 35.0 ± 5.0 | 45.0 ± 5.0 | 52.5 ± 3.5 |"
    answer = tables.answer(cells)
    assert "+12.6 points" in answer and "p = 0.028; the least that these seeds and sizes can give is 0.028" in answer
    assert f"| {ONE_LAMBDA} | 35.0 ± 5.0 |" in tables.merge_table(cells, MERGES[2], worst=True)
    assert "| expert string: string | 70.0 ± 0.0 |" in tables.matching_table(cells)
    assert "| string + refusal | 0.8, 0.8, 0.8 | 0.8, 0.8, 0.8 | 0.8, 0.8 |" in tables.chosen_table(cells)
    assert "| ‖τ‖/‖θ0‖ | 0.150 ± 0.000 |" in tables.weights_table(cells)
    assert "string + language: language" in tables.skills_table(cells)


def test_a_size_whose_experts_learned_little_is_also_left_out(tmp_path: Path) -> None:
    levels = {(name, seed): 0.6 - 0.1 * place for place, name in enumerate(SIZES) for seed in range(2)}
    records = filled(tmp_path, levels)
    row = rows(0.6)["models"]
    row["holdout"] = {model: dict(scores) for model, scores in row["holdout"].items()}
    row["holdout"]["base"]["string"] = 0.65  # its expert has 0.7
    records.add(PART, "skills-w64", 1, "models", row)
    cells = read(records, SIZES, range(5))
    assert [cell.learned for cell in cells if cell.name == "skills-w64"] == pytest.approx([0.5, 0.05])
    whole, _, rest = tables.answer(cells).partition(
        "The same without width 64 on seed 1, where an expert is less than 0.1"
    )
    assert "can give is 0.056" in whole and "can give is 0.17" in rest and "−12.9 on seed 1" in rest


def test_one_size_alone_answers_nothing(tmp_path: Path) -> None:
    cells = read(filled(tmp_path, {("skills-w64", 0): 0.5}), SIZES, range(5))
    assert "nothing to compare" in tables.answer(cells) and "| – |" in tables.weights_table(cells)


def test_a_page_gets_its_tables_and_keeps_its_words(tmp_path: Path) -> None:
    levels = {(name, seed): 0.6 - 0.1 * place for place, name in enumerate(SIZES) for seed in range(2)}
    found = page.blocks(read(filled(tmp_path, levels), SIZES, range(5)))
    text = "".join(f"Before.\n<!-- {name} -->\nstale words\n<!-- end -->\nAfter.\n" for name in found)
    once = page.filled(text, found)
    assert "stale" not in once and once.count("Before.") == once.count("After.") == len(found)
    assert "\n<!-- seeds -->\n\n| seed | width 64 |" in once and "−12.6 points" in once
    assert page.filled(once, found) == once
    with pytest.raises(SystemExit, match=r"each of these blocks once.*weights; found seeds"):
        page.filled(text[: text.index("<!-- answer")], found)
    assert all(each in page.printed(found) for each in found.values())


@pytest.mark.slow
def test_the_picture_is_drawn_for_light_and_dark_pages(tmp_path: Path) -> None:
    cells = read(filled(tmp_path, {(name, seed): 0.5 for name in SIZES for seed in range(2)}), SIZES, range(5))
    written = picture.write(cells, tmp_path)
    assert [path.name for path in written] == ["size_effect.png", "size_effect-dark.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size < 300_000 for path in written)


@pytest.mark.slow
def test_a_small_family_goes_through_from_models_to_tables(
    nano_zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "ITEMS", {"search": 32, "holdout": 64})
    few = {2: (0.6, 1.0), 3: (0.7, 1.0)}
    monkeypatch.setattr(plan, "PER_EXPERT", few)
    records, said = Records(tmp_path), []
    measure.measure(records, "skills-nano", 0, functools.cache(lambda: measure.opened("skills-nano", 0)), said.append)
    assert [line.split("  ")[1].strip() for line in said] == ["models", "weights", *map(title, MERGES)]
    (cell,) = read(records, ["skills-nano"], [0])
    own, base = {name: cell.alone[name][name] for name in SKILLS}, cell.alone["base"]
    assert all(own[name] > 0.9 > 0.6 > base[name] for name in SKILLS)
    assert all(0.01 < ratio < 1.0 for ratio in cell.rows["weights"]["norm_ratio"].values())
    pair = MERGES[1]
    kept = cell.kept(pair, "average")
    assert kept == {name: (cell.held(pair, "average")[name] - base[name]) / (own[name] - base[name]) for name in pair}
    assert cell.mean(pair, "per expert") > 0.2  # 0.56 to 0.95 after trainings that differ by rounding
    assert cell.chosen(pair, "per expert") in {"0.6, 0.6", "0.6, 1", "1, 0.6", "1, 1"}
    by_search = {
        arm: measure.retentions(cell.rows[title(pair)][arm]["search"], cell.rows["models"]["search"], pair)
        for arm in TITLES
    }
    assert min(by_search["per expert, by the worst skill"].values()) >= min(by_search["per expert"].values())
    assert sum(by_search[ONE_LAMBDA].values()) >= sum(by_search["average"].values()) - 1e-9  # 0.5 is among the λ
    # What is known is not measured again, and no model is opened for it.
    measure.measure(records, "skills-nano", 0, lambda: pytest.fail("opened again"), said.append)
    assert len(said) == 2 + len(MERGES)
    assert "| 0 | " in tables.seeds_table([cell]) and "nothing to compare" in tables.answer([cell])
