"""What a config may say of a first search, and what of it is wrong: told with the line, before anything runs."""

from __future__ import annotations

from dataclasses import MISSING, fields
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml

from search.config import LoadedConfig, load_config
from search.config_problems import place_in_first
from search.errors import SearchError
from search.events import RunStarted
from search.first_config import alone, is_first, name_of
from search.hybrid import first_of
from search.schema import Config
from search.stages import stage_names
from search.store import DATABASE, FIRST, under_way
from search.virtual import evolved, experts_of, in_turn, modelled, references

CONFIG: dict[str, Any] = {
    "name": "two",
    "models": {"base": "base", "experts": {"a": "a", "b": "b"}},
    "evaluators": {each: {"type": "exact_match", "data": f"data/{each}"} for each in ("a", "b")},
    "objectives": ["a.accuracy", "b.accuracy"],
    "first": {"name": "evolved", "search": {"optimizer": "cma", "budget": {"candidates": 20}}},
    "space": {"experts": ["evolved", "a"]},
    "search": {"budget": {"candidates": 30}},
    "trackers": {"tensorboard": {}},
}


def loaded(folder: Path, **sections: Any) -> LoadedConfig:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(CONFIG | sections, sort_keys=False))
    return load_config(path)


def first(**more: Any) -> dict[str, Any]:
    return CONFIG["first"] | more


def refused(folder: Path, **sections: Any) -> str:
    with pytest.raises(SearchError) as caught:
        loaded(folder, **sections)
    return str(caught.value)


def test_the_first_search_knows_nothing_of_the_second(tmp_path: Path) -> None:
    whole = loaded(tmp_path, first=first(objectives=["a.accuracy"], space={"granularity": "model"}))
    own = first_of(whole).config
    assert own.first is None and own.trackers == {} and not own.search.holdout and own.search.budget.candidates == 20
    assert [each.metric for each in own.objectives] == ["a.accuracy"] and own.space.granularity == "model"
    assert experts_of(own) == ("a", "b") and experts_of(whole.config) == ("a", "b", "evolved")
    assert own.models == whole.config.models and own.evaluators == whole.config.evaluators
    assert stage_names(own) == ["baselines", "full"]
    again = Config.model_validate(own.model_dump(mode="json"))
    assert again == own and Config.model_validate(whole.config.model_dump(mode="json")) == whole.config
    # without objectives of its own it has those of the whole
    assert [each.metric for each in alone(loaded(tmp_path).config).objectives] == ["a.accuracy", "b.accuracy"]
    assert references(whole.config)["evolved"] == "the choice of the first search"


def test_a_config_without_one_says_nothing_of_it(tmp_path: Path) -> None:
    config = {key: each for key, each in CONFIG.items() if key not in ("first", "space")}
    data = Config.model_validate(config).model_dump(mode="json")
    assert "first" not in data and "holdout" not in data["search"]


def test_what_is_made_of_the_choice_is_made_after_it(tmp_path: Path) -> None:
    virtual = {"early": {"method": "ties"}, "late": {"method": "ties", "of": ["evolved", "b"]}}
    models = CONFIG["models"] | {"virtual": virtual, "derived": {"more": "2*a"}}
    # the first search may choose a merge of a derived expert, which the second one has to have then too
    config = loaded(tmp_path, models=models, first=first(space={"experts": ["more", "b"]})).config
    assert [list(each) for each in in_turn(config)] == [["early"], ["late"]]
    assert list(alone(config).models.virtual) == ["early"]
    assert modelled(config) == modelled(alone(config)) == ("more",)
    assert experts_of(config) == ("a", "b", "more", "early", "late", "evolved") and evolved(config) == ("evolved",)


@pytest.mark.parametrize("name", ["a", "base"])
def test_its_name_must_be_nobody_elses(tmp_path: Path, name: str) -> None:
    said = refused(tmp_path, first=first(name=name), space={})
    assert "first.name: " in said and f"'{name}' is the name of " in said and "one of its own" in said


def test_mistakes_in_it_are_found_where_they_stand(tmp_path: Path) -> None:
    section = first(
        space={"methods": ["tie"], "experts": ["a"]},
        search={"optimizer": {"name": "cma", "popsiz": 9}, "budget": {"candidates": 20}},
    )
    said = refused(tmp_path, first=section)
    assert "first.space.methods.0: there is no merge method 'tie'; did you mean 'ties'?" in said
    assert "first.search.optimizer.popsiz: unknown key. Did you mean 'popsize'?" in said
    lines = (tmp_path / "config.yaml").read_text().splitlines()
    number = next(number for number, line in enumerate(lines, 1) if line.endswith("- tie"))
    assert f"config.yaml:{number}:" in said
    said = refused(tmp_path, first=first(objectives=["c.accuracy", "c.accuracy"]))
    assert "first.objectives: a metric is named twice" in said
    assert "first.objectives.0: there is no evaluator 'c'" in refused(tmp_path, first=first(objectives=["c.accuracy"]))
    assert "first.nam: unknown key. Did you mean 'name'?" in refused(tmp_path, first=first(nam="x"))


def test_what_means_nothing_there_is_refused(tmp_path: Path) -> None:
    search = CONFIG["first"]["search"]
    said = refused(tmp_path, first=first(search=search | {"control": True, "holdout": True}))
    assert "first.search.control: " in said and "set search.control in its place" in said
    assert "first.search.holdout: " in said and "always leaves the holdout closed" in said
    said = refused(tmp_path, first=first(space={"data_flow": {}}))
    assert "first.space.data_flow: the first search chooses an expert of the second one" in said
    said = refused(tmp_path, objectives=[{"metric": "a.accuracy", "expert": "evolved"}, "b.accuracy"])
    assert "objectives.0.expert: 'evolved' is the choice of the first search, a merge" in said
    said = refused(tmp_path, first=first(space={"experts": ["evolved", "a"]}))
    assert "first.space.experts.0: there is no expert 'evolved'; there are: a, b." in said
    virtual = {"late": {"method": "regmean", "of": ["evolved", "b"]}}
    said = refused(tmp_path, models=CONFIG["models"] | {"virtual": virtual})
    assert "models.virtual.late.of.0: 'evolved' is the choice of the first search, and regmean looks at inputs" in said
    assert "regmean looks at inputs" in refused(tmp_path, space={"experts": ["evolved", "a"], "methods": ["regmean"]})
    assert "there is no expert 'evolvd'" in refused(tmp_path, space={"experts": ["evolvd", "a"]})


def test_inputs_that_only_the_first_search_needs_are_needed(tmp_path: Path) -> None:
    """They are named once, for both; and the first search's own objectives count where they say whose skill it is."""
    regmean = first(space={"methods": ["regmean"]})
    whole = loaded(tmp_path, first=regmean, calibration={"items": 8})
    assert whole.config.calibration is not None and first_of(whole).config.calibration == whole.config.calibration
    assert "no method looks at inputs" in refused(tmp_path, calibration={"items": 8})
    config = loaded(tmp_path, first=regmean).config
    assert config.calibration is not None  # written out, as where the second one needs them
    both = loaded(tmp_path, space={"experts": ["a", "b"], "methods": ["regmean"]})
    assert both.config.calibration is not None and first_of(both).config.calibration is None


def test_errors_that_come_later_point_into_its_section(tmp_path: Path) -> None:
    own = first_of(loaded(tmp_path, first=first(objectives=["a.accuracy"])))
    assert "first.search.budget.gpu_hours: " in str(own.error(("search", "budget", "gpu_hours"), "expected"))
    assert "first.objectives.0: " in str(own.error(("objectives", 0), "expected"))
    assert ": evaluators.a: " in str(own.error(("evaluators", "a"), "expected"))
    # where it has no objectives of its own, those of the whole are meant
    own = first_of(loaded(tmp_path))
    assert ": objectives.0: " in str(own.error(("objectives", 0), "expected"))


@pytest.mark.parametrize("data", [{}, {"first": {}}, {"first": {"objectives": []}}, {"first": None}])
def test_a_place_moves_into_the_section_or_stays(data: dict[str, Any]) -> None:
    parts = ("first", "space", "search", "objectives", "models", 0)
    section = data.get("first")
    own = () if section is None else ("space", "search", *section)
    for place in (*product(parts), *product(parts, parts), ()):
        moved = place[:1] in [(each,) for each in own]
        assert place_in_first(place, data) == (("first", *place) if moved else place)


def test_a_run_directory_stands_for_the_search_that_is_under_way(tmp_path: Path) -> None:
    run = tmp_path / "two"
    (run / FIRST).mkdir(parents=True)
    assert under_way(run) == run
    (run / FIRST / DATABASE).touch()
    assert under_way(run) == run  # a folder of runs, one of which somebody calls `first`
    (run / "run.lock.1").touch()
    assert under_way(run) == run / FIRST
    (run / DATABASE).touch()
    assert under_way(run) == run


def test_a_first_search_is_known_wherever_it_lies(tmp_path: Path) -> None:
    whole = loaded(tmp_path).config
    run = tmp_path / "two"
    (run / FIRST).mkdir(parents=True)
    (run / "run.lock.1").touch()
    marked, older = started(of_hybrid=True), started()
    for folder in (run / FIRST, tmp_path / "copied"):
        assert is_first(folder, alone(whole), marked)
    assert name_of(tmp_path / "copied", first=True) == "copied, first search"
    assert name_of(run / FIRST, first=True) == "two, first search" and name_of(run, first=False) == "two"
    # logs that do not say it: by the place alone
    assert is_first(run / FIRST, alone(whole), older) and not is_first(run, alone(whole), older)
    # runs that somebody calls `first`, and that leave their holdouts closed, are none
    (tmp_path / "runs" / FIRST).mkdir(parents=True)
    assert not is_first(tmp_path / "runs" / FIRST, alone(whole), older)
    assert not is_first(run / FIRST, whole, older)


def started(**given: Any) -> RunStarted:
    """A first event with nothing else in it."""
    empty = {each.name: None for each in fields(RunStarted) if each.default is each.default_factory is MISSING}
    return RunStarted(**{**empty, **given})


def test_only_the_first_search_of_a_hybrid_logs_that_it_is_one() -> None:
    assert "of_hybrid" not in started().payload() and started(of_hybrid=True).payload()["of_hybrid"]
