"""``space.data_flow`` of a config: what it takes, where it points when it does not, and the stages that it makes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from merging.recipe import Group, SourceRef
from search.config import load_config, resolved_yaml
from search.errors import SearchError
from search.path_stages import deepest_path, models_of
from search.schema import Config, SpaceConfig
from search.space import KnownPaths, PathSpace, outside_of, path_of
from search.stages import Stage, build_stages, stage_names, translate

GOOD = """\
name: demo
models:
  base: models/base
  experts: {math: models/math, code: models/code}
evaluators:
  math: {type: exact_match, data: data/math}
objectives: [math.accuracy]
search: {budget: {candidates: 50}}
space:
"""
LAYERS = 8
GROUPS = [Group("embedding"), Group("norm"), *(Group(k, n) for n in range(LAYERS) for k in ("attention", "mlp"))]


def written(folder: Path, space: str, config: str = GOOD) -> Config:
    path = folder / "config.yaml"
    path.write_text(config + space, encoding="utf-8")
    return load_config(path).config


def message(folder: Path, space: str, config: str = GOOD) -> str:
    with pytest.raises(SearchError) as caught:
        written(folder, space, config)
    return str(caught.value)


def stages(folder: Path, space: str, config: str = GOOD, **more: Any) -> list[Stage]:
    of = written(folder, space, config)
    sources = {alias: SourceRef(alias, f"sha256:{alias}") for alias in ("base", "math", "code", "both", "minus")}
    return build_stages(of, GROUPS, sources, **more)


def labels(found: list[Stage]) -> dict[str, list[tuple[str, int]]]:
    space = found[0].space
    return {
        label: [(hop.alias, hop.layer) for hop in path_of(space.decode(genome))] for label, genome in found[0].fixed
    }


def plain(alias: str, first: int, end: int) -> list[tuple[str, int]]:
    return [(alias, layer) for layer in range(first, end)]


def test_defaults_are_the_published_space(tmp_path: Path) -> None:
    flow = written(tmp_path, "  data_flow: {}\n").space.data_flow
    assert flow is not None
    assert (flow.repetitions, flow.scales, flow.ends, flow.shift, flow.models) == (3, (0.4, 1.5), "fixed", 0, None)
    assert (flow.arrangement, flow.scale_per, flow.indicators, flow.depth) == ("models", "hop", "auto", None)


def test_a_data_flow_space_is_all_that_is_written_of_the_space_and_reads_back(tmp_path: Path) -> None:
    given = "  data_flow: {models: [code, base], repetitions: 2, scales: off, depth: 12, ends: free}\n"
    config = written(tmp_path, given)
    data = config.model_dump(mode="json")["space"]
    assert list(data) == ["data_flow"]
    assert "scale_per" not in data["data_flow"]
    assert Config.model_validate(config.model_dump(mode="json")) == config
    again = tmp_path / "resolved.yaml"
    again.write_text(resolved_yaml(config), encoding="utf-8")
    assert load_config(again).config == config


def test_a_space_without_data_flow_is_written_as_ever() -> None:
    assert "data_flow" not in SpaceConfig().model_dump(mode="json")


@pytest.mark.parametrize(
    ("space", "place", "text"),
    [
        ("  data_flow: {}\n  coefficient: [0, 1]\n", "config.yaml:11:3: space.coefficient", "merges no weights"),
        ("  data_flow: {}\n  methods: [ties]\n", "config.yaml:11:3: space.methods", "under `first`"),
        ("  data_flow: {models: [math, cod]}\n", "space.data_flow.models.1", "no model 'cod'; there are: base, math"),
        ("  data_flow: {models: [math, math]}\n", "space.data_flow.models", "named twice; repetitions: n"),
        ("  data_flow: {scales: [1.0, 1.5]}\n", "space.data_flow.scales", "0 < low < 1 < high"),
        ("  data_flow: {scales: [0, 2]}\n", "space.data_flow.scales", "0 < low < 1 < high"),
        ("  data_flow: {depth: 1}\n", "space.data_flow.depth", "expected at least 2"),
        ("  data_flow: {scales: off, scale_per: pair}\n", "space.data_flow.scale_per", "scales are off"),
        ("  data_flow: {repetition: 2}\n", "space.data_flow.repetition", "Did you mean 'repetitions'"),
        ("  data_flow: {indicators: bits}\n", "space.data_flow.indicators", "'auto', 'threshold' or 'choice'"),
        ("  data_flow: {}\nengine: {kind: vllm}\n", "engine.kind", "use kind: hf"),
        ("  data_flow: {}\nworkers: {kind: ray, gpus: 2}\n", "workers.gpus", "expected 1 or less"),
    ],
)
def test_what_is_wrong_is_said_where_it_stands(tmp_path: Path, space: str, place: str, text: str) -> None:
    found = message(tmp_path, space)
    assert place in found
    assert text in found


def test_baselines_are_the_models_alone_and_the_known_ways_to_stack_them(tmp_path: Path) -> None:
    found = stages(tmp_path, "  data_flow: {}\n")
    assert [stage.name for stage in found] == ["baselines", "full"]
    assert labels(found) == {
        "base": plain("base", 0, 8),
        "expert math": plain("math", 0, 8),
        "expert code": plain("code", 0, 8),
        "math up-scaled": [*plain("math", 0, 6), *plain("math", 2, 8)],
        "math|code stacked halves": [*plain("math", 0, 4), *plain("code", 4, 8)],
    }
    known = found[0].space
    assert isinstance(known, KnownPaths)
    whose = {label: outside_of(known.decode(genome)) for label, genome in found[0].fixed}
    assert whose["base"] == "base" and whose["expert code"] == "code" and whose["math|code stacked halves"] == "math"
    assert found[0].end == 5 and found[1].end is None


def test_experts_that_are_made_give_layers_and_baselines_too(tmp_path: Path) -> None:
    made = GOOD.replace(
        "evaluators:", "  virtual: {both: {method: ties}}\n  derived: {minus: base - code}\nevaluators:", 1
    )
    found = stages(tmp_path, "  data_flow: {models: [both, code], scales: off}\n", made)
    names = list(labels(found))
    assert names[:5] == ["base", "expert math", "expert code", "expert minus", "both alone"]
    assert names[5:] == ["both up-scaled", "both|code stacked halves"]
    full = found[1].space
    assert isinstance(full, PathSpace) and full.models == ("both", "code")
    every = stages(tmp_path, "  data_flow: {}\n", made)[1].space
    assert isinstance(every, PathSpace) and every.models == ("math", "code", "minus", "both")


def test_the_full_stage_is_told_what_it_can_express(tmp_path: Path) -> None:
    found = stages(tmp_path, "  data_flow: {}\n")
    known, full = found[0].space, found[1].space
    told = {label: translate(genome, known, full) for label, genome in found[0].fixed}
    assert [label for label, genome in told.items() if genome is not None] == ["expert math", "math up-scaled"]
    assert told["expert math"] == full.center()
    free = stages(tmp_path, "  data_flow: {ends: free}\n")[1].space
    assert translate(dict(found[0].fixed)["math|code stacked halves"], known, free) is not None


def test_a_cap_on_the_depth_leaves_deeper_baselines_out(tmp_path: Path) -> None:
    names = list(labels(stages(tmp_path, "  data_flow: {depth: 10}\n")))
    assert "math up-scaled" not in names and "expert math" in names
    config = written(tmp_path, "  data_flow: {depth: 4}\n")
    assert deepest_path(config, LAYERS) == LAYERS  # the experts alone are candidates too
    assert deepest_path(written(tmp_path, "  data_flow: {}\n"), LAYERS) == 16


@pytest.mark.parametrize(
    ("optimizer", "given", "choices"),
    [("cma", "auto", 0), ("auto", "auto", 46), ("catcma", "auto", 46), ("cma", "choice", 46), ("tpe", "threshold", 0)],
)
def test_indicators_follow_the_optimizer_unless_they_are_named(
    tmp_path: Path, optimizer: str, given: str, choices: int
) -> None:
    config = GOOD.replace("search: {", f"search: {{optimizer: {optimizer}, ")
    full = stages(tmp_path, f"  data_flow: {{indicators: {given}}}\n", config)[1].space
    assert len(full.box.categories) == choices
    assert full.box.continuous == 48 + 46 - choices
    assert (full.sure is None) == (choices == 0)


def test_stages_of_a_stored_run_keep_their_ends(tmp_path: Path) -> None:
    assert stages(tmp_path, "  data_flow: {}\n", ends=[3])[0].end == 3
    config = written(tmp_path, "  data_flow: {}\n")
    assert stage_names(config) == ["baselines", "full"]
    assert models_of(config) == ("math", "code")
