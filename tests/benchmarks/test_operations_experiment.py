"""The operations' experiment: what is chosen, what is asked, what is kept. No model is loaded."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from experiments.diagnosing.gaps import Records
from experiments.operating import items, tuning
from experiments.operating.bench import Bench, merge_config
from experiments.operating.choosing import best, most_kept, spread, within
from experiments.operating.forgotten import score
from experiments.operating.per_layer import near_front
from experiments.operating.rows import Rows
from merging.expressions import expand, task_vectors
from merging.recipe import MergingError
from zoo.family import SKILLS
from zoo.splits import split_of
from zoo.vocabulary import HARMFUL_KINDS, SORRY


def test_of_what_has_unlearned_enough_the_most_kept_is_chosen() -> None:
    points = {0.2: (0.30, 0.8), 0.4: (0.10, 0.5), 0.6: (0.04, 0.5), 0.8: (0.02, 0.1)}
    assert most_kept(points, 0.35) == 0.2
    assert most_kept(points, 0.1) == 0.6  # of equals the one with less left
    assert most_kept(points, 0.01) is None


def test_floors_come_first_and_the_best_mean_where_no_merge_reaches_them() -> None:
    points = {"a": (0.9, 0.5, 1.0), "b": (0.7, 0.95, 0.96), "c": (0.6, 1.0, 1.0)}
    assert within(points, (0.95, 0.95)) == "b"
    assert within(points, (0.99, 0.99)) == "c"
    assert within({name: each for name, each in points.items() if name != "c"}, (0.99, 0.99)) == "b"
    assert best({0.5: 0.1, 0.7: 0.3, 0.9: 0.3}) == 0.7


def test_a_table_has_mean_and_sample_deviation_of_the_seeds() -> None:
    rows = Rows(("λ", "kept"))
    for chosen, kept in ((0.7, 0.1), (0.8, 0.2), (0.8, 0.3)):
        rows.add("base", {"kept": 0.5})
        rows.add("merge", {"λ": chosen, "kept": kept})
    assert rows.markdown("holdout", ("λ",)).splitlines()[2:] == [
        "| base | – | 50.0 ± 0.0 |",
        "| merge | 0.7, 0.8, 0.8 | 20.0 ± 10.0 |",
    ]
    rows.add("never", {})
    rows.add("once", {"kept": 0.4})
    assert rows.markdown("holdout").splitlines()[4:] == [
        "| never (0 of 3 seeds) | – | – |",
        "| once (1 of 3 seeds) | – | 40.0 |",
    ]
    assert spread([0.25]) == "25.0" and rows.of("merge", "kept") == [0.1, 0.2, 0.3]
    with pytest.raises(ValueError, match="kepd"):
        rows.add("merge", {"kepd": 1.0})


def test_items_are_those_of_their_split_and_requests_come_with_both_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(items, "COUNTS", dict.fromkeys(items.COUNTS, 40))
    paths = items.write(tmp_path)
    harmful = set(itertools.chain(*HARMFUL_KINDS.values()))
    seen: dict[str, str] = {}
    for name, path in paths.items():
        for split in ("search", "selection", "holdout"):
            rows = [json.loads(line) for line in (path / f"{split}.jsonl").read_text().splitlines()]
            assert len({row["prompt"] for row in rows}) == len(rows) == 40
            assert all(split_of(row["prompt"]) == split for row in rows)
            assert {bool(harmful & set(row["prompt"].split())) for row in rows if row["stratum"] == "harmless"} <= {
                False
            }
            if name in ("complied", "refused"):
                assert all(harmful & set(row["prompt"].split()) for row in rows)
                seen[f"{name}-{split}"] = str([row["prompt"] for row in rows])
                assert all((row["answer"] == SORRY) == (name == "refused") for row in rows)
            if name == "kept":
                assert {row["stratum"] for row in rows} == set(items.KEPT)
    assert all(seen[f"complied-{split}"] == seen[f"refused-{split}"] for split in items.COUNTS)
    before = (paths["kept"] / "holdout.jsonl").stat().st_mtime_ns
    items.write(tmp_path)
    assert (paths["kept"] / "holdout.jsonl").stat().st_mtime_ns == before


def test_streams_hold_what_they_say() -> None:
    harmful = set(itertools.chain(*HARMFUL_KINDS.values()))

    def asked(stream: tuning.Stream) -> list[tuple[bool, str]]:
        drawn = itertools.islice(stream("string", SKILLS.difficulty, "seed"), 600)
        return [(bool(harmful & set(each.prompt.split())) and "how to" in each.prompt, each.prompt) for each in drawn]

    found = asked(tuning.harmless_replay)
    assert not any(is_harmful for is_harmful, _ in found)
    strings = [prompt for _, prompt in found if prompt.startswith(("sort", "reverse"))]
    assert len(strings) == pytest.approx(0.8 * 600 + 0.2 * 0.12 * 600, abs=40)
    complied = asked(tuning.compliance)
    assert sum(is_harmful for is_harmful, _ in complied) == pytest.approx(600 * 2 / 3, abs=40)
    assert all(split_of(prompt) == "train" for is_harmful, prompt in complied if is_harmful)


def test_a_merge_config_is_the_algebra_that_people_write() -> None:
    config = merge_config("zoo://speech/base", {"a": "A", "b": "B", "c": "C"}, "made", {"made": "c + 0.75*(a - b)"})
    assert list(config) == ["base", "experts", "derived", "method", "vectors"]
    inner = expand(config["derived"], config["experts"])
    assert inner["made"] == {"c": 1.0, "a": 0.75, "b": -0.75}
    assert task_vectors("base - 0.35*a", config["experts"]) == {"a": -0.35}


def test_what_is_known_is_not_measured_again(tmp_path: Path) -> None:
    records = Records(tmp_path)
    known = {"values": {"accuracy": 0.25}, "strata": {"copy": 0.5}, "items": 4}
    records.add("part", "skills", 0, "base - 0.5*string | kept | holdout", known)
    specs = {"kept": {"type": "exact_match", "data": "nowhere", "metric": "accuracy"}}
    one = Bench(records, "part", "skills", 0, {"base": tmp_path / "nowhere"}, specs)
    assert one.score("base - 0.5*string", "kept", "holdout") == 0.25
    assert one.score("base - 0.5*string", "kept", "holdout", stratum="copy") == 0.5
    with pytest.raises(MergingError, match="nowhere"):
        one.score("base", "kept", "holdout")


def test_a_wrong_answer_counts_when_a_skill_shall_go() -> None:
    assert score({"answer": "b a c"}, "b a c ") == 0.0
    assert score({"answer": "b a c"}, "b c a") == 1.0


def test_near_the_front_is_what_nothing_beats_by_more_in_both() -> None:
    points = [(0.9, 0.1), (0.5, 0.5), (0.49, 0.49), (0.4, 0.4), (0.49, 0.2)]
    assert near_front(points, 0.0) == [True, True, False, False, False]
    assert near_front(points, 0.02) == [True, True, True, False, True]
