"""EvoLLM's published protocol on Japanese sums: how its numbers are read, and that a config can say all of it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from fasttext_models import write_model
from hypothesis import given
from hypothesis import strategies as st
from test_exact_match_texts import Scripted, folder_of

from evaluators.answers import extract, extract_expected
from evaluators.contract import EvaluatorError
from evaluators.exact_match import ExactMatch, ExactMatchOptions

STOP = ["Instruction:", "Instruction", "Response:", "Response"]


@pytest.mark.parametrize(("text", "sakana", "robust"), [
    ("答えは1,234です。", "234", "1234"),
    ("答えは-5です。", "5", "-5"),
    ("3個と4個で7個", "7", "7"),
    ("合計は18.0ドル", "18", "18"),
    ("18.5 ドル", "18.5", "18.5"),
    ("答えは .5", "0.5", "0.5"),
    ("版 3.14.15", "0.15", "15"),
    ("答えは１８です", "18", "18"),
    ("答えは18.", "18", "18"),
    ("わかりません。", None, None),
])  # fmt: skip
def test_the_quirks_of_the_published_expression(text: str, sakana: str | None, robust: str | None) -> None:
    assert extract(text, "sakana-compat") == sakana
    assert extract(text, "last_number") == robust


@given(st.text(alphabet="0123456789.,- a１", max_size=30))
def test_two_texts_are_equal_where_the_numbers_are(text: str) -> None:
    """The published evaluator compares floats; here their texts are compared."""
    numbers = re.findall(r"\d*\.?\d+", text)
    found = extract(text, "sakana-compat")
    assert (found is None) == (not numbers)
    if found is not None:
        assert float(found) == float(numbers[-1])
        assert extract(found, "sakana-compat") == found or "e" in found


def test_expected_numbers_are_not_read_by_the_quirk() -> None:
    assert extract_expected("1,234", "sakana-compat") == "1234"
    assert extract_expected("18.0", "sakana-compat") == "18"
    assert extract_expected("-5", "sakana-compat") == "-5"
    assert extract_expected("1,234", "last_number") == "1234"
    assert extract_expected("none", "sakana-compat") is None


def scores(data: Path, says: dict[str, str], **options: Any) -> dict[str, dict[str, float]]:
    """prompt -> metric -> value on the search split."""
    evaluator = ExactMatch(ExactMatchOptions(data=data, **options))
    evaluator.prepare(Scripted(says))
    ids = evaluator.items("search").ids
    found = evaluator.score(Scripted(says), ids)
    names = [metric.name for metric in evaluator.metrics]
    assert set(names) == set(found.values)
    prompts = [evaluator._items[id].value.record["prompt"] for id in ids]
    return {prompt: {name: float(found.values[name][at]) for name in names} for at, prompt in enumerate(prompts)}


def test_both_ways_are_told_side_by_side(tmp_path: Path) -> None:
    says = {"comma": "答えは1,234です。", "plain": "答えは1234です。", "tail": "答えは234です。"}
    data = folder_of(tmp_path, *({"prompt": name, "answer": "1,234"} for name in says))
    by_sakana = scores(data, says, extract="sakana-compat")
    assert by_sakana == {
        "comma": {"accuracy": 0.0, "accuracy_last_number": 1.0},
        "plain": {"accuracy": 1.0, "accuracy_last_number": 1.0},
        "tail": {"accuracy": 0.0, "accuracy_last_number": 0.0},
    }
    by_both = scores(data, says, extract="last_number", also_extract="sakana-compat")
    for name, found in by_sakana.items():
        assert by_both[name] == {
            "accuracy": found["accuracy_last_number"],
            "accuracy_sakana_compat": found["accuracy"],
        }


def test_what_one_way_does_not_find_the_other_may(tmp_path: Path) -> None:
    says = {"marked": "Answer: 18", "unmarked": "it is 18", "none": "no idea"}
    data = folder_of(tmp_path, *({"prompt": name, "answer": "18"} for name in says))
    found = scores(data, says, extract={"after": "Answer:"}, also_extract="last_number")
    assert {name: [*each.values()] for name, each in found.items()} == {
        "marked": [1.0, 1.0],
        "unmarked": [0.0, 1.0],
        "none": [0.0, 0.0],
    }


def test_the_gate_judges_both(tmp_path: Path) -> None:
    pytest.importorskip("fasttext")
    model = write_model(tmp_path / "tiny.ftz")
    says = {"ja": "こたえは18", "en": "the answer is 18", "wrong": "こたえは17", "cut": "こたえは18 Response 3"}
    data = folder_of(tmp_path, *({"prompt": name, "answer": "18"} for name in says))
    gate = {"code": "ja", "fasttext": str(model)}
    found = scores(data, says, extract="sakana-compat", language=gate, stop=STOP)
    values = {name: [*each.values()] for name, each in found.items()}
    assert [*found["ja"]] == ["accuracy", "in_language", "accuracy_any_language", "accuracy_last_number"]
    assert values == {
        "ja": [1.0, 1.0, 1.0, 1.0],
        "en": [0.0, 0.0, 1.0, 0.0],
        "wrong": [0.0, 1.0, 0.0, 0.0],
        "cut": [1.0, 1.0, 1.0, 1.0],
    }


def test_scores_of_before_keep_their_names(tmp_path: Path) -> None:
    data = folder_of(tmp_path, {"prompt": "a", "answer": "18"})

    def fingerprint(**options: Any) -> str:
        return ExactMatch(ExactMatchOptions(data=data, **options)).fingerprint

    plain = fingerprint(extract="last_number")
    assert plain == fingerprint(extract="last_number", also_extract=None)
    both = {"extract": "last_number", "also_extract": "sakana-compat"}
    assert len({plain, fingerprint(**both), fingerprint(extract="sakana-compat")}) == 3
    assert "also_extract" not in json.dumps(ExactMatch(ExactMatchOptions(data=data)).identity())


def test_numbers_as_answers(tmp_path: Path) -> None:
    """The Hub's tables of sums keep answers as numbers."""
    records = [{"prompt": "a", "answer": 18}, {"prompt": "b", "answer": 18.0}, {"prompt": "c", "answer": -2.5}]
    data = folder_of(tmp_path, *records)
    said = dict.fromkeys("ab", "so 18") | {"c": "so -2.5"}
    found = scores(data, said, extract="last_number")
    assert [each["accuracy"] for each in found.values()] == [1.0, 1.0, 1.0]
    with pytest.raises(EvaluatorError, match=r"the field \"answer\" must be .*found true or false"):
        scores(folder_of(tmp_path, {"prompt": "a", "answer": True}), said, extract="last_number")


@pytest.mark.parametrize(("options", "message"), [
    ({"also_extract": "last_number"}, "set extract: sakana-compat"),
    ({"extract": "sakana-compat", "also_extract": "sakana-compat"}, "set extract: last_number"),
    ({"extract": "sakana-compat", "mode": "teacher_forced"}, "teacher_forced compares the whole answer"),
])  # fmt: skip
def test_options_that_cannot_be_meant(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ExactMatchOptions.model_validate({"data": "x", **options})
