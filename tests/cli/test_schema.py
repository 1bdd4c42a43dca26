"""The JSON schema: current, valid, as lenient as the loader with what is right, and as strict with what is wrong."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from search.cli import run_command
from search.config import load_config
from search.config_schema import DIALECT, committed, config_schema, schema_text
from search.errors import SearchError

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
SCHEMA = json.loads(committed().read_text(encoding="utf-8"))
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)

SMALL: dict[str, Any] = {
    "name": "small",
    "models": {"base": "base", "experts": {"math": "math", "chat": "chat"}},
    "evaluators": {
        "math": {"type": "exact_match", "data": "data/math"},
        "chat": {"type": "choice", "data": {"file": "all.csv"}},
    },
    "objectives": ["math.accuracy", {"metric": "chat.acc", "expert": "chat"}],
    "search": {"budget": {"candidates": 10}},
}


def changed(changes: dict[str, Any]) -> dict[str, Any]:
    """The small config with values at dotted paths; None removes."""
    config = copy.deepcopy(SMALL)
    for path, value in changes.items():
        place = config
        *parents, last = path.split(".")
        for part in parents:
            place = place.setdefault(part, {})
        if value is None:
            place.pop(last)
        else:
            place[last] = value
    return config


def errors(config: dict[str, Any]) -> list[Any]:
    return list(VALIDATOR.iter_errors(config))


def loads(config: dict[str, Any], folder: Path) -> bool:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    try:
        load_config(path)
    except SearchError:
        return False
    return True


def test_the_committed_copy_is_current() -> None:
    """If not: `paretomerge schema --fresh --out search/config.schema.json`."""
    assert committed().read_text(encoding="utf-8") == schema_text(config_schema())


def test_the_schema_is_draft_2020_12_and_every_reference_leads_somewhere() -> None:
    assert SCHEMA["$schema"] == DIALECT
    jsonschema.Draft202012Validator.check_schema(SCHEMA)

    def references(value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            yield from [value["$ref"]] if isinstance(value.get("$ref"), str) else []
            for each in value.values():
                yield from references(each)
        elif isinstance(value, list):
            for each in value:
                yield from references(each)

    used = {each.removeprefix("#/$defs/") for each in references(SCHEMA)}
    assert used == set(SCHEMA["$defs"])


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_fits_and_points_editors_to_the_schema(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert errors(yaml.safe_load(text)) == []
    first = text.splitlines()[0]
    assert first.startswith("# yaml-language-server: $schema=")
    assert (path.parent / first.partition("$schema=")[2]).resolve() == committed().resolve()


GOOD: dict[str, dict[str, Any]] = {
    "small": {},
    "fidelity off": {"search.fidelity": "off"},
    "fidelity as YAML reads off": {"search.fidelity": False},
    "halving": {"search.fidelity": {"rungs": [10, 20], "rule": "halving", "keep": 0.5}},
    "optimizer by name": {"search.optimizer": "tpe"},
    "optimizer with options": {"search.optimizer": {"name": "cma", "popsize": 9, "restarts": False}},
    "granularity layer": {"space.granularity": "layer"},
    "granularity blocks": {"space.granularity": {"blocks": 3}},
    "a method with parameters": {
        "space.methods": ["ties", {"name": "dare_ties", "parameters": {"density": [0.2, 0.9]}}],
    },
    "virtual": {"models.virtual": {"made": {"method": "wudi", "of": ["math", "chat"]}}},
    "calibration": {
        "calibration": {"items": 8, "inputs": {"math": {"evaluator": "math"}, "chat": {"data": "rows.csv"}}},
        "models.virtual": {"made": {"method": "regmean"}},
    },
    "constraints": {"constraints": {"chat.acc": {"at_least": 0.5}, "math": {"at_most": 0.9, "confidence": 0.5}}},
    "ray": {"workers": {"kind": "ray", "count": 4, "timeout": None, "schedule": "steady"}},
    "no time-out": {"workers": {"timeout": 30}},
    "trackers": {"trackers": {"tensorboard": {}, "wandb": {"mode": "offline", "tags": ["a"]}}},
    "lm-eval per split": {
        "evaluators.chat": {"type": "lm_eval", "tasks": {"search": ["a"], "selection": "b", "holdout": ["c"]}},
        "objectives": ["math.accuracy", "chat.acc"],
    },
    "data per split": {"evaluators.math.data": {"search": "a.jsonl", "selection": "b.jsonl", "holdout": "c.jsonl"}},
    "extraction": {"evaluators.math.extract": {"regex": "x"}, "evaluators.math.stop": ["\n"]},
    "whole numbers for floats": {"space.coefficient": [0, 2], "search.reserve": 0.5},
    "merge keys": {"models.dtype": "bfloat16", "engine": {"device": "cuda:1", "threads": 2}},
}  # fmt: skip

BAD: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown key": ({"serach": {}}, "$"),
    "an unknown key below": ({"search.optimiser": "cma"}, "$.search"),
    "no models": ({"models": None}, "$"),
    "no experts": ({"models.experts": {}}, "$.models.experts"),
    "an expert called base": ({"models.experts.base": "x"}, "$.models.experts"),
    "a name with a space": ({"evaluators.two words": {"type": "choice", "data": "d"}}, "$.evaluators"),
    "an evaluator without type": ({"evaluators.math": {"data": "d"}}, "$.evaluators.math"),
    "an evaluator that is not there": ({"evaluators.math.type": "exactmatch"}, "$.evaluators.math.type"),
    "an option of another evaluator": ({"evaluators.math.margin": True}, "$.evaluators.math"),
    "an option out of range": ({"evaluators.math.max_new_tokens": 0}, "$.evaluators.math.max_new_tokens"),
    "a stop that is no list": ({"evaluators.math.stop": "x"}, "$.evaluators.math.stop"),
    "an evaluator without data": ({"evaluators.math.data": None}, "$.evaluators.math"),
    "an optimizer that is not there": ({"search.optimizer": "cmaes"}, "$.search.optimizer"),
    "an optimizer's option out of range": (
        {"search.optimizer": {"name": "cma", "popsize": 1}}, "$.search.optimizer",
    ),
    "an optimizer's unknown option": ({"search.optimizer": {"name": "tpe", "popsize": 9}}, "$.search.optimizer"),
    "a method that is not there": ({"space.methods": ["tise"]}, "$.space.methods[0]"),
    "a method's unknown parameter": (
        {"space.methods": [{"name": "ties", "parameters": {"densty": 0.5}}]}, "$.space.methods[0]",
    ),
    "a virtual method's parameter out of range": (
        {"models.virtual": {"made": {"method": "ties", "parameters": {"density": 2.0}}}},
        "$.models.virtual.made.parameters.density",
    ),
    "both sides of a constraint": ({"constraints": {"math": {"at_least": 0.1, "at_most": 0.2}}}, "$.constraints.math"),
    "neither side": ({"constraints": {"math": {"confidence": 0.9}}}, "$.constraints.math"),
    "an objective without a metric": ({"objectives": ["math"]}, "$.objectives[0]"),
    "no budget": ({"search": {}}, "$.search"),
    "a budget of nothing": ({"search.budget.candidates": 0}, "$.search.budget.candidates"),
    "a tracker that is not there": ({"trackers": {"mlflow": {}}}, "$.trackers"),
    "a tracker's unknown option": ({"trackers": {"wandb": {"nmae": "x"}}}, "$.trackers.wandb"),
    "a granularity of nothing": ({"space.granularity": "layers"}, "$.space.granularity"),
    "workers of an unknown kind": ({"workers": {"kind": "dask"}}, "$.workers.kind"),
}  # fmt: skip


@pytest.mark.parametrize("changes", GOOD.values(), ids=GOOD)
def test_what_the_loader_takes_the_schema_takes(changes: dict[str, Any], tmp_path: Path) -> None:
    config = changed(changes)
    assert [(each.json_path, each.message) for each in errors(config)] == []
    assert loads(config, tmp_path)


@pytest.mark.parametrize(("changes", "path"), BAD.values(), ids=BAD)
def test_what_the_loader_refuses_the_schema_refuses_at_its_place(
    changes: dict[str, Any], path: str, tmp_path: Path
) -> None:
    config = changed(changes)
    assert path in {each.json_path for each in errors(config)}
    assert not loads(config, tmp_path)


def test_a_plug_in_in_a_file_is_no_error() -> None:
    plug_ins = {
        "evaluators.math": {"type": "mine.py:Mine", "whatever": 1},
        "search.optimizer": {"name": "mine.py:Mine", "speed": 3},
        "space.methods": ["ties", "mine.py:Merge"],
    }
    assert errors(changed(plug_ins)) == []


def test_every_option_says_what_it_is() -> None:
    silent = [
        (place, name)
        for place, section in SCHEMA["$defs"].items()
        if place.startswith(("evaluator-", "optimizer-", "tracker-"))
        for name, each in section["properties"].items()
        if "const" not in each and "$ref" not in each and not each.get("description")
    ]
    assert silent == []
    assert [name for name, each in SCHEMA["properties"].items() if not {"description", "$ref"} & each.keys()] == []


def test_the_command_prints_it_and_writes_it_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["schema"]) == 0
    assert capsys.readouterr().out == committed().read_text(encoding="utf-8")
    out = tmp_path / "schema.json"
    assert run_command(["schema", "--out", str(out)]) == 0
    assert json.loads(out.read_text(encoding="utf-8")) == SCHEMA
    assert [each.name for each in tmp_path.iterdir()] == ["schema.json"]


@pytest.mark.parametrize(("out", "message"), [("", "folder"), ("nowhere/x.json", "no folder")])
def test_a_place_that_cannot_be_written_is_a_message(
    out: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["schema", "--out", str(tmp_path / out)]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
