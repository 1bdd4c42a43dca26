"""``blocks: auto``: where borders are placed, what a space makes of them, and that a run keeps those it began with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from merging.recipe import Group, SourceRef
from merging.sources import Sources
from search.borders import MOST_PLANNED, place_borders, planned_borders, told, wants_borders
from search.config import load_config
from search.errors import SearchError
from search.events import RunStarted
from search.optimizers.contract import Genome
from search.schema import Config
from search.space import Bounds, MethodChoice, PlacedBlocks, Space, SpaceError
from search.stages import Stage, build_stages
from search.store.payloads import event_of, payload_of

LAYERS = 9
GROUPS = [Group("embedding"), Group("head")]
GROUPS += [Group(kind, depth) for depth in range(LAYERS) for kind in ("attention", "mlp")]
REFS = {alias: SourceRef(alias, f"sha256:{alias}") for alias in ("base", "a", "b")}


def space(borders: dict[str, tuple[int, ...]], **more: Any) -> Space:
    settled: dict[str, Any] = {"groups": GROUPS, "kinds": [["attention"], ["mlp"], ["embedding", "head"]]}
    settled |= {"granularity": PlacedBlocks(borders), "method_blocks": borders} | more
    return Space(base="base", sources=REFS, experts=("a", "b"), coefficient=Bounds(0.0, 1.0), **settled)


def test_blocks_begin_where_they_were_placed() -> None:
    found = space({"": (0, 2, 7)}, methods=("task_arithmetic", MethodChoice("linear")))
    own = [gene for gene in found.genes if gene.expert == "a" and gene.kinds == ("attention",)]
    assert [(gene.name, gene.depth) for gene in own] == [
        ("a.attention@block0", 0),
        ("a.attention@block1", 2),
        ("a.attention@block2", 7),
    ]
    chosen = [gene for gene in found.genes if gene.role == "method"]
    assert [gene.depth for gene in chosen] == [0, 2, 7]
    values = np.linspace(0.1, 0.9, found.box.continuous)
    recipe = found.decode(Genome(tuple(values), (0, 0, 0)))
    table = found.table(recipe)["a"]
    runs = [[table[Group("attention", depth)] for depth in run] for run in ((0, 1), (2, 3, 4, 5, 6), (7, 8))]
    assert all(len(set(run)) == 1 for run in runs) and len({run[0] for run in runs}) == 3
    assert found.decode(found.encode(recipe)).hash == recipe.hash


def test_what_lies_outside_goes_with_the_ends_and_stacks_have_borders_of_their_own() -> None:
    groups = [Group("embedding"), Group("head")]
    groups += [Group("mlp", depth, stack) for stack in ("decoder", "encoder") for depth in range(4)]
    found = space(
        {"encoder": (0, 3), "decoder": (0,)},
        groups=groups,
        kinds=[["mlp"], ["embedding"], ["head"]],
        methods=("task_arithmetic", "linear"),
    )
    mine = [gene.name for gene in found.genes if gene.expert == "a"]
    assert mine == ["a.decoder/mlp", "a.encoder/mlp@block0", "a.encoder/mlp@block1", "a.embedding", "a.head"]
    methods = [gene for gene in found.genes if gene.role == "method"]
    assert [(gene.name, gene.depth) for gene in methods] == [
        ("method@decoder/block0", 0),
        ("method@encoder/block0", 0),
        ("method@encoder/block1", 3),
    ]
    with pytest.raises(SpaceError, match="expected borders for the stack 'decoder'"):
        space({"encoder": (0,)}, groups=groups, kinds=[["mlp"], ["embedding"], ["head"]])


def config(folder: Path, experts: str = "a: a, b: b", **keys: str) -> Config:
    lines = "".join(f"  {key}: {value}\n" for key, value in keys.items())
    (folder / "config.yaml").write_text(
        f"name: x\nmodels: {{base: base, experts: {{{experts}}}}}\n"
        "evaluators: {a: {type: exact_match, data: data}}\nobjectives: [a.accuracy]\n"
        f"space:\n{lines}search: {{budget: {{candidates: 30}}}}\n"
    )
    return load_config(folder / "config.yaml").config


def stages(of: Config, borders: dict[str, list[int]] | None) -> list[Stage]:
    return build_stages(of, GROUPS, REFS, borders=borders)


def test_a_config_may_leave_either_to_be_placed(tmp_path: Path) -> None:
    both = config(tmp_path, granularity="{blocks: auto}", method_blocks="auto", methods="[task_arithmetic, ties]")
    assert wants_borders(both) and Config.model_validate(both.model_dump(mode="json")) == both
    assert wants_borders(config(tmp_path, method_blocks="auto"))
    plain = config(tmp_path, granularity="{blocks: 3}")
    assert not wants_borders(plain)
    assert stages(plain, None)[-1].space.genes == stages(plain, {"": [0, 1]})[-1].space.genes  # nothing to place
    full = stages(both, {"": [0, 6]})[-1].space
    assert {gene.depth for gene in full.genes if gene.role in ("coefficient", "method", "density")} == {None, 0, 6}
    assumed = stages(both, None)[-1].space  # not looked at yet: as many as there may be
    assert len({gene.depth for gene in assumed.genes if gene.role == "method"}) == MOST_PLANNED


@pytest.mark.parametrize("value", ["0", "many", "true", "1.5", ".inf", ".nan"])
def test_what_is_no_number_of_blocks_is_said_once(value: str, tmp_path: Path) -> None:
    said = refusal(tmp_path, granularity=f"{{blocks: {value}}}")
    assert "space.granularity: expected a whole number from 1 to 1024, or auto, found" in said
    assert said.count("config.yaml:") == 1
    said = refusal(tmp_path, method_blocks=value)
    assert "space.method_blocks: expected a whole number of 1 or more, or auto, found" in said
    assert said.count("config.yaml:") == 1


def refusal(folder: Path, **keys: str) -> str:
    with pytest.raises(SearchError) as caught:
        config(folder, **keys)  # type: ignore[arg-type]
    return str(caught.value)


def test_the_numbers_of_blocks_that_older_configs_have_mean_what_they_meant(tmp_path: Path) -> None:
    """Runs that began with them are read and resumed."""
    assert "from 1 to 1024" in refusal(tmp_path, granularity="{blocks: 2000}")
    old = config(tmp_path, granularity="{blocks: 3.0}", method_blocks="2000")
    assert old == config(tmp_path, granularity="{blocks: 3}", method_blocks="2000.0")
    dump = old.model_dump(mode="json")["space"]
    assert (dump["granularity"], dump["method_blocks"]) == ({"blocks": 3}, 2000)
    assert list(dump) == [
        "coefficient", "granularity", "kinds", "shared", "methods", "method_blocks", "density", "shared_density",
        "normalize",
    ]  # fmt: skip


def test_planned_borders_are_even_and_no_more_than_there_are_layers() -> None:
    assert planned_borders(GROUPS) == {"": [0, 2, 3, 4, 5, 6, 7, 8]}
    assert planned_borders([Group("mlp", 0, "s"), Group("mlp", 1, "s"), Group("head")]) == {"s": [0, 1]}
    assert planned_borders([Group("head")]) == {}


def test_what_was_placed_is_told_in_words() -> None:
    assert told({"": [0, 4, 20]}) == "3 blocks, from layers 0, 4 and 20"
    assert told({"encoder": [0], "decoder": [0, 3]}) == (
        "encoder: 1 block, since no layer stands out; decoder: 2 blocks, from layers 0 and 3"
    )
    assert told({}) == "the model has no layers to divide"


# -- over models ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base and two fine-tunes; from layer 5 on ``b`` went ten times as far, along with ``a``."""
    folder, generator = tmp_path_factory.mktemp("planted"), torch.Generator().manual_seed(0)
    names = [f"model.layers.{layer}.mlp.{part}_proj.weight" for layer in range(LAYERS) for part in ("up", "down")]
    base = {name: torch.randn(48, 48, generator=generator) for name in (*names, "model.embed_tokens.weight")}
    ours = {name: 0.01 * torch.randn(48, 48, generator=generator) for name in base}
    theirs = {name: 0.01 * torch.randn(48, 48, generator=generator) for name in base}
    for name in names:
        if int(name.split(".")[2]) >= 5:
            theirs[name] = 10 * theirs[name] + 5 * ours[name]
    whole = {"base": base, "a": {k: v + ours[k] for k, v in base.items()}}
    whole["b"] = {k: v + theirs[k] for k, v in base.items()}
    whole["far"] = {k: torch.randn(48, 48, generator=generator) for k in base}
    for alias, tensors in whole.items():
        (folder / alias).mkdir()
        save_file(tensors, folder / alias / "model.safetensors", metadata={"format": "pt"})
        (folder / alias / "config.json").write_text(json.dumps({"model_type": "llama", "num_hidden_layers": LAYERS}))
    return {alias: folder / alias for alias in whole}


def test_borders_stand_where_the_task_vectors_change(models: dict[str, Path], tmp_path: Path) -> None:
    """And what was made of the experts has no say: it is not there yet when a run is planned."""
    lines: list[str] = []
    of = config(tmp_path, granularity="{blocks: auto}")
    sources = Sources.load(models["base"], {alias: models[alias] for alias in ("a", "b")})
    found = place_borders(of, sources, lines.append)
    assert found == {"": [0, 5]} and lines[-1] == "blocks: auto: 2 blocks, from layers 0 and 5"
    assert place_borders(of, sources.joined({"made": models["far"]}), lines.append) == found
    assert place_borders(config(tmp_path, granularity="model"), sources, lines.append) == {}


def test_a_log_keeps_them_and_those_of_old_have_none() -> None:
    needed = {name: {} for name in ("config", "sources", "paths", "evaluators", "items")}
    lists = {name: [] for name in ("groups", "objectives", "stage_ends", "reference")}
    started = RunStarted(**needed, **lists, engine="", threads=1, borders={"": [0, 5]})  # type: ignore[arg-type]
    again = event_of(started.kind, payload_of(started))
    assert isinstance(again, RunStarted) and again.borders == {"": [0, 5]}
    plain = RunStarted(**needed, **lists, engine="", threads=1)  # type: ignore[arg-type]
    assert "borders" not in plain.payload()
