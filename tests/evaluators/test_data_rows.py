"""Ranges of rows, and the data sets of EvoLLM's published protocol, from a hub that is played here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from evaluator_samples import lines
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from text_models import Scripted

from evaluators.contract import EvaluatorError
from evaluators.exact_match import ExactMatch, ExactMatchOptions
from evaluators.items import Table

SEARCHED = "SakanaAI/gsm8k-ja-test_250-1319"
HOLDOUT = "sbintuitions/MGSM_ja"
REVISION = "964859c892f49b8ec5b4b6dd2401169739c7458d"


def table(place: Path, count: int) -> Path:
    path = place / "all.jsonl"
    path.write_text(lines([{"prompt": f"p{at}", "answer": str(at)} for at in range(count)]), encoding="utf-8")
    return path


@given(first=st.integers(-12, 12), end=st.none() | st.integers(-12, 12))
def test_ranges_are_python_slices_that_lie_in_the_table(
    first: int, end: int | None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = table(tmp_path_factory.getbasetemp(), 10)
    chosen = Table(file=path, rows=(first, end))
    start, stop = first + 10 * (first < 0), 10 if end is None else end + 10 * (end < 0)
    if 0 <= start < stop <= 10:
        assert [row.record["prompt"] for row in chosen.read()] == [f"p{at}" for at in range(10)][first:end]
    else:
        with pytest.raises(EvaluatorError, match=r"is no range of rows that are there: the table has 10, from 0 to 9"):
            chosen.read()


def test_all_rows_without_a_range(tmp_path: Path) -> None:
    assert len(Table(file=table(tmp_path, 7)).read()) == 7


def test_one_table_is_cut_within_its_range(tmp_path: Path) -> None:
    options = ExactMatchOptions.model_validate({"data": {"file": str(table(tmp_path, 60)), "rows": [-40, None]}})
    evaluator = ExactMatch(options)
    prompts = {each.value.record["prompt"] for each in evaluator._items.values()}
    assert prompts == {f"p{at}" for at in range(20, 60)}


@pytest.mark.parametrize("rows", ["0:3", [1], [0, 1, 2], ["a", 3], [0.5, 3], [True, 3], [None, 3], 3])
def test_ranges_that_are_none(rows: Any) -> None:
    with pytest.raises(ValidationError, match=r"rows: expected \[first, end\]"):
        Table.model_validate({"file": "a.jsonl", "rows": rows})


def protocol(**search: Any) -> dict[str, Any]:
    published = {"dataset": SEARCHED, "split": "test", "revision": REVISION}
    return {
        "data": {
            "search": {**published, "rows": [0, 869], **search},
            "selection": {**published, "rows": [869, 1069]},
            "holdout": {"dataset": HOLDOUT, "config": "default", "split": "test"},
        },
        "prompt": {"template": "### 指示:\n{question}\n\n### 応答:", "chat": False},
        "answer_field": "answer_number",
        "extract": "sakana-compat",
        "max_new_tokens": 1024,
        "stop": ["Instruction:", "Instruction", "Response:", "Response"],
    }


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Answers of ``datasets.load_dataset`` for both data sets, of their published sizes; keeps what is asked."""
    import datasets

    asked: list[tuple[Any, ...]] = []
    rows = {
        SEARCHED: [{"question": f"問{at}", "answer_number": at} for at in range(250, 1319)],
        HOLDOUT: [{"question": f"問{at}", "answer": None, "answer_number": at} for at in range(250)],
    }

    def load_dataset(name: str, config: str | None, *, split: str, revision: str | None) -> Any:
        asked.append((name, config, split, revision))
        if name == "juletxara/mgsm":
            raise RuntimeError("Dataset scripts are no longer supported, but found mgsm.py")
        return datasets.Dataset.from_list(rows[name])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


def test_the_published_splits(hub: list[tuple[Any, ...]]) -> None:
    evaluator = ExactMatch(ExactMatchOptions.model_validate(protocol()))
    sizes = {split: len(evaluator.items(split).ids) for split in ("search", "selection", "holdout")}
    assert sizes == {"search": 869, "selection": 200, "holdout": 250}
    assert hub == [(SEARCHED, None, "test", REVISION)] * 2 + [(HOLDOUT, "default", "test", None)]
    last = {evaluator._items[id].value.record["question"] for id in evaluator.items("selection").ids}
    assert last == {f"問{at}" for at in range(1119, 1319)}
    engine = Scripted({"### 指示:\n問250\n\n### 応答:": "答えは250です。\nResponse: 3"})
    evaluator.prepare(engine)
    [first] = [id for id, item in evaluator._items.items() if item.value.record["question"] == "問250"]
    assert evaluator.score(engine, (first,)).values["accuracy"].tolist() == [1.0]


@pytest.mark.usefixtures("hub")
def test_a_row_in_two_splits_is_a_leak() -> None:
    with pytest.raises(EvaluatorError, match="the same item as"):
        ExactMatch(ExactMatchOptions.model_validate(protocol(rows=[0, 870])))


@pytest.mark.usefixtures("hub")
def test_data_sets_that_are_programs_are_told_so() -> None:
    with pytest.raises(EvaluatorError, match=r"it is a program, .* sbintuitions/MGSM_ja"):
        Table(dataset="juletxara/mgsm", config="ja").read()


def test_a_word_that_holds_script_is_no_program(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def load_dataset(*_: Any, **__: Any) -> Any:
        raise ValueError("the card's description is damaged")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(EvaluatorError, match=r"description is damaged.*check its name"):
        Table(dataset="me/mine").read()
