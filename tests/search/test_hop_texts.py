"""Paths in words: nothing is lost, nothing is added, and what is short stays readable."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from merging.methods import canonical
from merging.recipe import Assignment, Group, Recipe, SourceRef
from search.report.hop_texts import (
    MOST_PARTS,
    counts_text,
    hops_in,
    hundredths,
    in_steps,
    layers_text,
    path_rows,
    path_text,
    stretches,
)
from search.space.hops import Hop

PATHS = st.lists(
    st.builds(
        Hop, st.sampled_from(["a", "b", "math", "v2"]), st.integers(0, 9), st.sampled_from([1.0, 0.4, 0.82, 1.0004])
    ),
    min_size=1,
    max_size=40,
)
PART = re.compile(r"(?:([A-Za-z])|(\w+)\.)(\d+)(?:–(\d+))?(?:·(\d\.\d\d))?")


def hops(text: str) -> list[Hop]:
    """What a person reads out of a path's words."""
    found = []
    for part in text.split():
        match = PART.fullmatch(part)
        assert match is not None, part
        letter, name, first, last, scale = match.groups()
        found += [
            Hop(letter or name, layer, float(scale or 1.0)) for layer in range(int(first), int(last or first) + 1)
        ]
    return found


def test_the_example_of_the_documentation() -> None:
    path = [*(Hop("a", layer) for layer in range(8)), Hop("b", 3), Hop("b", 4, 0.82)]
    path += [Hop("a", layer) for layer in range(8, 12)]
    assert path_text(path) == "a0–7 b3 b4·0.82 a8–11"
    assert path_rows(path) == [
        ["0–7", "a", "0–7", "1.00"], ["8", "b", "3", "1.00"], ["9", "b", "4", "0.82"], ["10–13", "a", "8–11", "1.00"],
    ]  # fmt: skip
    assert counts_text(path) == "14 hops over 14 different layers, 12 of a and 2 of b; scales 0.82 to 1.00"
    again = [Hop("a", 0), Hop("a", 1), Hop("a", 1)]
    assert counts_text(again) == "3 hops over 2 different layers, 2 of a; 1 of them more than once"
    assert counts_text([Hop("a", 0, 0.5)]) == "1 hop over 1 different layer, 1 of a; scale 0.50"


@given(PATHS)
def test_a_path_can_be_read_back_from_its_words(path: list[Hop]) -> None:
    shown = [Hop(hop.alias, hop.layer, round(hop.scale, 2)) for hop in path]
    assert hops(path_text(path, most=len(path))) == shown


@given(PATHS)
def test_stretches_are_the_path_and_as_few_as_can_be(path: list[Hop]) -> None:
    for scaled in (True, False):
        found = stretches(path, scaled=scaled)
        flat = [(each.alias, layer) for each in found for layer in range(each.first, each.last + 1)]
        assert flat == [(hop.alias, hop.layer) for hop in path]
        lengths = [each.length for each in found]
        assert [each.start for each in found] == [0, *itertools.accumulate(lengths)][:-1]
        for one, other in itertools.pairwise(found):
            joins = one.alias == other.alias and one.last + 1 == other.first
            assert not (joins and (not scaled or one.scale == other.scale))
        for each in found:
            scales = {in_steps(hop.scale) for hop in path[each.start : each.start + each.length]}
            assert scales == {each.scale} if each.scale is not None else len(scales) > 1


@given(PATHS, st.integers(2, 8))
def test_a_long_path_keeps_its_ends_and_says_its_scales(path: list[Hop], most: int) -> None:
    short, whole = path_text(path, most), path_text(path, most, cut=False)
    layers = short.partition(" (scale")[0].split()
    assert len(layers) <= most + 1  # one of them is the gap
    assert "…" not in whole
    if len(stretches(path)) > most:
        assert ("scale" in short) == ("scale" in whole) == any(in_steps(hop.scale) != 1000 for hop in path)
    first, last = path[0], path[-1]
    assert layers[0].startswith(layers_text(first.alias, first.layer, first.layer))
    assert re.split("[·]", layers[-1])[0].endswith(str(last.layer))


def test_numbers_are_rounded_as_the_page_does_it() -> None:
    assert [hundredths(each) for each in (825, 824, 1000, 995, 994, 1234)] == [
        "0.83", "0.82", "1.00", "1.00", "0.99", "1.23",
    ]  # fmt: skip
    assert in_steps(0.8245) == 825 and in_steps(0.4) == 400


@pytest.mark.parametrize(("alias", "text"), [("a", "a3–7"), ("math", "math.3–7"), ("v2", "v2.3–7"), ("7", "7.3–7")])
def test_a_name_and_its_layers_are_told_apart(alias: str, text: str) -> None:
    assert layers_text(alias, 3, 7) == text


def test_only_a_path_is_one() -> None:
    sources = {alias: SourceRef(alias, f"sha256:{alias}") for alias in ("base", "a")}
    take = canonical(Assignment.of("passthrough", {"a": {}}))
    groups = {Group("mlp", depth): take for depth in range(2)}
    path = Recipe("base", sources, groups, layers=({"a": 1}, {"a": 1}))
    assert hops_in(path) == (Hop("a", 1), Hop("a", 1))
    plain = Recipe("base", sources, groups)
    merged = Recipe("base", sources, groups, layers=({"a": 0, "base": 0}, {"a": 1}))
    assert hops_in(plain) is None and hops_in(merged) is None
    assert len(path_text([Hop("a", each % 2) for each in range(100)]).split()) == MOST_PARTS + 1
