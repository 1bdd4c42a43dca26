"""No item in two splits, whichever evaluators hold it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluators.contract import SPLITS, Items, Split
from search.errors import SearchError
from search.splits import check_disjoint


class Holder:
    def __init__(self, contents: Mapping[Split, list[str]]) -> None:
        self._contents = contents

    def items(self, split: Split) -> Items:
        held = self._contents.get(split, [])
        return Items(tuple(f"{split}/{k}" for k in range(len(held))), ("",) * len(held), tuple(held))


def evaluators(**contents: Mapping[Split, list[str]]) -> dict[str, Any]:
    return {name: Holder(each) for name, each in contents.items()}


@pytest.mark.parametrize(("here", "there"), [("search", "holdout"), ("holdout", "selection"), ("selection", "search")])
def test_an_item_that_two_evaluators_have_in_different_splits_is_refused(here: Split, there: Split) -> None:
    with pytest.raises(SearchError) as refused:
        check_disjoint(evaluators(math={here: ["x", "same"]}, sums={there: ["same"]}, other={"search": ["y"]}))
    text = str(refused.value)
    for part in (f"'{there}/0'", f"'{here}/1'", "'math'", "'sums'", here, there):
        assert part in text
    assert "\n" not in text


def test_the_same_item_in_the_same_split_of_two_evaluators_is_no_leak() -> None:
    shared = {"search": ["a", "b"], "selection": ["c"], "holdout": ["d"]}
    check_disjoint(evaluators(accuracy=shared, loss=shared))  # type: ignore[arg-type]


def test_within_one_evaluator_it_is_refused_as_well() -> None:
    with pytest.raises(SearchError):
        check_disjoint(evaluators(math={"search": ["a"], "selection": ["a"]}))


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("pqr"), st.sampled_from(SPLITS), st.sampled_from("abcdef")), max_size=12))
def test_refused_exactly_where_some_content_has_two_splits(places: list[tuple[str, Split, str]]) -> None:
    held: dict[str, dict[Split, list[str]]] = {}
    for name, split, content in places:
        held.setdefault(name, {}).setdefault(split, []).append(content)
    leaks = len({(split, content) for _, split, content in places}) > len({content for _, _, content in places})
    if leaks:
        with pytest.raises(SearchError):
            check_disjoint(evaluators(**held))
    else:
        check_disjoint(evaluators(**held))
