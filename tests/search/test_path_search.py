"""A planted path is found, by the published protocol and by optimizers that know choices."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from planted_paths import Found, searched, stages_over

from search.optimizers.auto import choose
from search.optimizers.contract import Box, Genome, Outcome, Settings, Trial
from search.schema import Config
from search.space import Hop, PathSpace
from search.stages import build_optimizer

LAYERS = 4
PLANTED = (
    Hop("a", 0), Hop("a", 1, 1.2), Hop("a", 2), Hop("b", 2), Hop("b", 3, 0.8), Hop("a", 2), Hop("a", 3),
)  # fmt: skip
"""Two layers of b, then one of a once more; two scales."""


def config(optimizer: dict[str, Any], **flow: Any) -> Config:
    return Config.model_validate(
        {
            "name": "planted",
            "models": {"base": "base", "experts": {"a": "a", "b": "b"}},
            "evaluators": {"skill": {"type": "exact_match", "data": "x"}},
            "objectives": ["skill.accuracy"],
            "space": {"data_flow": {"repetitions": 2, **flow}},
            "search": {"budget": {"candidates": 100}, "optimizer": optimizer, "seed": 4},
        }
    )


def find(optimizer: dict[str, Any], candidates: int, **flow: Any) -> Found:
    return searched(config(optimizer, **flow), LAYERS, PLANTED, candidates)


def is_planted(found: Found) -> None:
    assert [hop[:2] for hop in found.path] == [hop[:2] for hop in PLANTED]
    assert found.best > 0.95 > 0.7 > found.start
    for hop, planted in zip(found.path, PLANTED, strict=True):
        assert hop.scale == pytest.approx(planted.scale, rel=0.2)


def test_the_published_protocol_finds_the_planted_path() -> None:
    """CMA-ES over real indicators, from model A."""
    is_planted(find({"name": "cma"}, 1000))


def test_a_mixed_variable_optimizer_finds_the_planted_path() -> None:
    is_planted(find({"name": "sms_emoa"}, 700))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("optimizer", "candidates"), [("catcma", 700), ("nsga2", 700), ("auto", 700), ("tpe", 150), ("cma", 900)]
)
def test_so_do_the_others(optimizer: str, candidates: int) -> None:
    found = find({"name": optimizer}, candidates, indicators="choice")
    if optimizer == "tpe":  # gets nearer, with less
        assert found.best > found.start + 0.1
    else:
        is_planted(found)


@pytest.mark.slow
def test_layers_that_changed_places_are_found_where_slots_may_move() -> None:
    planted = (Hop("a", 0), Hop("a", 2), Hop("a", 1), Hop("a", 3))
    swap = config({"name": "sms_emoa"}, models=["a"], repetitions=1, shift=2, scales="off")
    assert searched(swap, LAYERS, planted, 200).path == planted
    fixed = config({"name": "sms_emoa"}, models=["a"], repetitions=1, scales="off")
    assert searched(fixed, LAYERS, planted, 60).best < 1.0


@pytest.mark.parametrize("optimizer", ["catcma", "nsga2", "tpe", "sms_emoa", "random", "cma"])
def test_a_search_begins_near_model_a(optimizer: str) -> None:
    """Most slots stand as in model A in what is drawn first; drawn evenly, half of them would."""
    of = config({"name": optimizer}, repetitions=3)
    full = stages_over(of, 12)[1]
    assert isinstance(full.space, PathSpace)
    asked = build_optimizer(of, full, 1000, 1)
    asked.tell(Trial(0, full.space.center()), Outcome("complete", (0.5,), (0.01,), 100))
    drawn = [asked.ask(id, ()) for id in range(1, 13)]
    differing = [share_of_slots(full.space, genome) for genome in drawn]
    assert 0.0 < float(np.mean(differing)) < 0.1
    assert all(len(full.space.decode(genome).layers or ()) <= 24 for genome in drawn)


def test_auto_takes_what_keeps_to_the_start_for_one_objective_or_several() -> None:
    full = stages_over(config({"name": "auto"}), LAYERS)[1]
    box = full.space.box
    settings = Settings(box, 1, 0, 100, (0.0,), center=full.space.center(), seconds=10.0, sure=full.space.sure)
    assert choose(replace(settings, box=Box(40, box.categories))).name == "sms_emoa"
    several = replace(settings, objectives=3, reference=(0.0,) * 3, box=Box(40, box.categories))
    assert (choose(several).name, choose(several).then, choose(several).options) == ("sms_emoa", None, {})
    assert choose(replace(several, sure=None)).options == {"prescreen": "gp"}


def share_of_slots(space: PathSpace, genome: Genome) -> float:
    """Of the free slots, those that are not as the center has them."""
    own, center = set(space.included(genome)), set(space.included(space.center()))
    return len(own ^ center) / len(space.slots)
