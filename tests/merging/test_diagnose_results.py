"""A diagnosis as JSON: whatever the aliases are, there and back; and what a stranger's file may hold."""

from __future__ import annotations

import copy
import json
import math
import random
from collections.abc import Callable
from dataclasses import fields
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import merging.diagnose
from merging.diagnose.results import FORMAT, Diagnosis, Measures, Settings
from merging.recipe import Group, MergingError


def measures_of(aliases: tuple[str, ...], draw: random.Random) -> Measures:
    """Measures of which anything may be undefined but the norms."""
    pairs = list(combinations(aliases, 2))
    conflicts: list[Any] = [*pairs, "all"]
    keys = {"norm": aliases, "sign_conflict": conflicts, "sign_conflict_weighted": conflicts}
    values: dict[str, Any] = {}
    for each in fields(Measures):
        if each.type == "int":
            values[each.name] = draw.randrange(10**12)
        elif each.type in ("float", "float | None"):
            values[each.name] = draw.gauss(0.0, 1e6)
        else:
            known = keys.get(each.name, aliases if "Pair" not in each.type else pairs)
            values[each.name] = {
                key: draw.gauss(0.0, 10.0 ** draw.randint(-300, 200))
                for key in known
                if each.name == "norm" or draw.random() < 0.7
            }
    return Measures(**values)


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 2**32), aliases=st.lists(st.text(max_size=6), min_size=1, max_size=3, unique=True).map(tuple)
)
def test_there_and_back(seed: int, aliases: tuple[str, ...]) -> None:
    draw = random.Random(seed)
    make = lambda: measures_of(aliases, draw)  # noqa: E731
    places = {"model.a|b.weight": Group("mlp", 3), "x": Group("embedding"), "y": Group("norm", 0, "encoder.a")}
    diagnosis = Diagnosis(
        aliases=aliases,
        references={"base": "folder", **dict.fromkeys(aliases, "with | and / in it")},
        contents={},
        settings=Settings(density=0.25, rank_k=3, seed=7, spectra="sampled"),
        whole=make(),
        kinds={"mlp": make(), "encoder.a/norm": make()},
        depths={("", 0): make(), ("encoder.a", 0): make()},
        groups={group: make() for group in places.values()},
        tensors={name: make() for name in places},
        places=places,
        notes=("said once",),
        seconds=1.5,
    )
    written = json.dumps(diagnosis.as_data(), allow_nan=False)
    assert Diagnosis.from_data(json.loads(written)) == diagnosis
    short = Diagnosis.from_data(json.loads(json.dumps(diagnosis.as_data(tensors=False))))
    assert not short.tensors and not short.places and short.groups == diagnosis.groups


@pytest.fixture
def plain() -> dict[str, Any]:
    measures = Measures(elements=4, base_norm=2.0, norm={"a": 1.0, "b": 0.5}, cosine={("a", "b"): 0.25})
    diagnosis = Diagnosis(
        ("a", "b"), {}, {}, Settings(), measures, {"mlp": measures}, {("", 0): measures}, {}, {"w": measures}, {}
    )
    data: dict[str, Any] = diagnosis.as_data()
    return data


def test_the_layout_of_the_json(plain: dict[str, Any]) -> None:
    """What others read it by."""
    assert plain["format"] == FORMAT == "paretomerge-diagnosis/1"
    whole = plain["whole"]
    assert whole["norm"] == [1.0, 0.5] and whole["cosine"] == [0.25] and whole["pearson"] == [None]
    assert whole["sign_conflict"] == {"all": None, "pairs": [None]}
    assert plain["depths"][0]["stack"] == "" and plain["depths"][0]["depth"] == 0


DAMAGES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no object": (lambda data: [data], "expected a diagnosis to be a JSON object"),
    "other format": (lambda data: {**data, "format": "paretomerge-diagnosis/9"}, "expected a diagnosis of the format"),
    "aliases twice": (lambda data: {**data, "aliases": ["a", "a"]}, "expected different aliases"),
    "aliases no texts": (lambda data: {**data, "aliases": [1, 2]}, "list of texts"),
    "too few": (lambda data: data["whole"].update(norm=[1.0]), "expected 2 numbers in norm of the whole model"),
    "text": (lambda data: data["kinds"]["mlp"].update(cosine=["x"]), "finite numbers or null in cosine of kinds mlp"),
    "not finite": (lambda data: data["whole"].update(base_norm=math.inf), "expected finite numbers or null"),
    "huge": (lambda data: data["whole"].update(base_norm=10**400), "expected finite numbers or null"),
    "true": (lambda data: data["whole"].update(elements=True), "expected elements of the whole model to be a whole"),
    "no norm": (lambda data: data["tensors"]["w"].update(norm=[None, 1.0]), "expected the norms of the base and"),
    "a group": (lambda data: data.update(places={"w": "what?"}), "expected a group such as"),
    "a setting": (lambda data: data["settings"].update(speed=3), "expected the settings of a diagnosis"),
    "a density": (lambda data: data["settings"].update(density=3), "expected a density in"),
    "a depth": (lambda data: data["depths"][0].update(depth=-1), "whole number from 0 on"),
    "a stack": (lambda data: data["depths"][0].update(stack=3), "expected a text as the stack"),
    "missing": (lambda data: data.pop("whole"), "expected the whole model to be a JSON object, found None"),
    "notes": (lambda data: data.update(notes="note"), "expected notes of the diagnosis to be a list"),
    "contents": (lambda data: data.update(contents={"a": 3}), "expected contents of the diagnosis to be texts"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_a_file_may_not_hold(plain: dict[str, Any], damage: str) -> None:
    data = copy.deepcopy(plain)
    change, message = DAMAGES[damage]
    changed = change(data)
    with pytest.raises(MergingError, match=message):
        Diagnosis.from_data(changed if isinstance(changed, list) or "format" in (changed or {}) else data)


@pytest.mark.parametrize(
    "wrong",
    [
        {"density": 0.0},
        {"density": 1.5},
        {"density": float("nan")},
        {"density": "0.2"},
        {"rank_k": 0},
        {"rank_k": 2.0},
        {"seed": -1},
        {"spectra": "some"},
        {"exact_rank": 0},
    ],
)
def test_settings_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(MergingError, match="expected"):
        Settings(**wrong)


def test_summaries_over_pairs() -> None:
    pairs = {("a", "b"): 0.5, ("a", "c"): -0.1, ("b", "c"): 0.0}
    norms = {"a": 2.0, "b": 4.0, "c": 1.0}
    found = Measures(elements=4, base_norm=2.0, norm=norms, cosine=pairs, pearson=pairs)
    assert found.orthogonality == pytest.approx(0.2) and found.kinship == pytest.approx(0.4 / 3)
    assert found.imbalance == 4.0
    assert Measures(elements=4, base_norm=2.0, norm={"a": 1.0}).imbalance is None


def test_public_names() -> None:
    assert all(getattr(merging.diagnose, name) is not None for name in merging.diagnose.__all__)
    assert set(dir(merging.diagnose)) == set(merging.diagnose.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        merging.diagnose.nothing  # noqa: B018
