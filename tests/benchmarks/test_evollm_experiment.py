"""The EvoLLM experiment's tables on planted rows: what is averaged, what is compared, what spreads."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.evolving.rows import CHOSEN, Row, arm, at, seeded
from experiments.evolving.tables import over_seeds, paired, search_spread, summary

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def row(training: int, seed: int, chosen: float, expert: float, p: float) -> Row:
    held = {CHOSEN: {"all.accuracy": chosen}, "expert a": {"all.accuracy": expert}, "average": {"all.accuracy": 0.4}}
    selected = {CHOSEN: chosen, "expert a": expert, "average": 0.4}
    return Row("planted", training, seed, held, selected, {"expert a": p, "average": 0.0}, 0.02, 100, 5000)


ROWS = [
    row(0, 0, 0.70, 0.60, 0.001),
    row(0, 1, 0.74, 0.60, 0.02),
    row(1, 0, 0.50, 0.55, 1.0),
    row(1, 1, 0.50, 0.55, 1.0),
]


def test_search_seeds_are_averaged_before_training_seeds_spread() -> None:
    assert over_seeds(ROWS, lambda row: row.mean(CHOSEN)) == "61.0 ± 15.6"  # of 72 and 50
    assert over_seeds(ROWS[:1], lambda row: row.mean(CHOSEN)) == "70.0"
    assert search_spread(ROWS) == "2.0 points"  # root mean square of 2.83 and 0
    assert search_spread(ROWS[::2]) == "one search seed only"


def test_the_chosen_candidate_is_compared_with_who_is_best_on_selection() -> None:
    assert [each.best_expert for each in ROWS] == ["expert a"] * 4
    text = paired(ROWS)
    assert "+10.0, +14.0, -5.0, -5.0; better in 2 of 4; by the number" in text
    assert "p < 0.01 in 1" in text
    assert "candidates 100, items 5000" in text
    table = summary(ROWS)
    assert table.splitlines()[0] == "| holdout | all.accuracy |"
    assert table.splitlines()[-1] == "| chosen | 61.0 ± 15.6 |"


def test_every_model_is_of_the_training_seed_and_both_searches_of_the_search_seed() -> None:
    loaded = seeded(CONFIGS / "evollm_jp_hybrid_mini.yaml", 2, 5)
    models = loaded.config.models
    assert {models.base, *models.experts.values()} == {
        f"zoo://crosslingual@2/{name}" for name in ("base", "language", "string_a", "string_b")
    }
    assert loaded.config.first is not None
    assert (loaded.config.search.seed, loaded.config.first.search.seed) == (5, 5)


@pytest.mark.parametrize(
    ("label", "name"), [("best single λ (0.8)", "best single λ"), ("dare_ties λ=1", "dare_ties λ=1")]
)
def test_an_arm_has_one_name_in_every_run(label: str, name: str) -> None:
    assert arm(label) == name
    assert at("zoo://skills@1/data/string", 3) == "zoo://skills@3/data/string"
