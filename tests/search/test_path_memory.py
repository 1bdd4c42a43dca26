"""What a search for paths takes of memory: every layer once, and for every hop keys and values and what its scale
multiplies."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from merging import Sources, load_model
from merging.dataflow import PathMaterializer
from merging.recipe import Assignment, Group, Recipe
from merging.sizes import ModelSizes, Widths, for_paths, sizes_of, writers_of
from search.config import load_config
from search.path_memory import in_memory, largest_export, layers_of
from search.placement import GB, Machine, Placement, Work, keys_and_values, place

CONFIG = """
name: paths
models:
  base: zoo://skills-nano/base
  experts: {string: zoo://skills-nano/string}
space: {data_flow: {depth: 7}}
evaluators: {string: {type: exact_match, data: zoo://skills-nano/data/string}}
objectives: [string.accuracy]
search: {budget: {candidates: 8}}
"""

# 7 B in bfloat16: 32 layers of 0.42 GB, and 0.5 GB around them; a base and three experts.
SEVEN = ModelSizes(
    parameters=7 * 10**9,
    sources=dict.fromkeys(("base", "a", "b", "c"), 14 * GB),
    live=14 * GB,
    piece=GB // 2,
    tensor=GB // 4,
    itemsize=2,
    widths=Widths(32, 1024, 4096, 14336, 32000),
    cast=dict.fromkeys(("base", "a", "b", "c"), 14 * GB),
    layer=420 * 10**6,
    around=GB // 2,
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sizes")
    for seed, alias in enumerate(("base", "a")):
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=53, hidden_size=24, intermediate_size=40, num_hidden_layers=3, num_attention_heads=4
        )
        LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder / alias)
    return folder


@pytest.mark.parametrize("dtype", [None, "float32"])
def test_what_is_reckoned_is_what_is_held(saved: Path, dtype: str | None) -> None:
    sizes = sizes_of(saved / "base", {"a": saved / "a"}, dtype)
    assert sizes.around + 3 * sizes.layer == sizes.live
    held = for_paths(sizes, 8, writers_of(saved / "base", dtype))
    assert held.live == 0 and held.sources == {"base": sizes.live, "a": sizes.live}
    sources = Sources.load(saved / "base", {"a": saved / "a"})
    paths = PathMaterializer(sources, load_model(saved / "base", dtype=dtype))
    every = [("base", 0), ("a", 0), ("base", 1), ("a", 1), ("base", 2), ("a", 2), ("a", 2), ("a", 2)]
    for outside in ("base", "a"):
        groups = {
            Group(group.kind, number, group.stack): Assignment.of("passthrough", {alias: {}})
            for number, (alias, layer) in enumerate(every)
            for group in sources.layout.groups
            if group.depth == layer
        }
        groups |= {
            each: Assignment.of("passthrough", {outside: {}}) for each in sources.layout.groups if each.depth is None
        }
        layers = tuple({alias: layer} for alias, layer in every)
        recipe = Recipe("base", sources.refs, groups, dtype=dtype, layers=layers)
        paths.apply(recipe)
        assert paths.scaled_bytes == (0 if outside == "base" else held.scaled)
        paths.apply(replace(recipe, scales=(1.1,) * 8))
        assert paths.scaled_bytes == held.scaled > 0
    assert sum(paths.bytes) == sum(held.sources.values())
    assert paths.bytes[0 if dtype else 1] == 0
    assert held.path == min(sum(held.sources.values()), 8 * sizes.layer + sizes.around)


def size(found: Placement, what: str) -> int:
    return sum(part.size for part in found.parts if part.what == what)


def test_there_are_no_weights_beside_the_sources_and_a_slot_for_every_hop() -> None:
    held, machine = for_paths(SEVEN, 64), Machine((80 * GB,), 128 * GB)
    found = place(held, machine, Work(workers=1, gpus=1.0))
    assert found.fits and size(found, "live model") == 0 and size(found, "layers of a path") == 0
    assert {part.where for part in found.parts if part.what in SEVEN.sources or "expert" in part.what} == {"device"}
    plain = place(SEVEN, machine, Work(workers=1, gpus=1.0))
    assert size(plain, "live model") == 14 * GB
    assert size(found, "keys and values") / found.batch_tokens == pytest.approx(
        2 * size(plain, "keys and values") / plain.batch_tokens
    )
    assert SEVEN.widths is not None and held.widths is not None
    assert keys_and_values(held.widths, 100, 2) == 2 * keys_and_values(SEVEN.widths, 100, 2)


def test_where_not_all_layers_have_room_those_of_a_path_have() -> None:
    held = for_paths(SEVEN, 40)
    found = place(held, Machine((40 * GB,), 128 * GB), Work(workers=1, gpus=1.0))
    assert found.fits and size(found, "layers of a path") == 40 * SEVEN.layer + SEVEN.around
    small = place(held, Machine((16 * GB,), 128 * GB), Work(workers=1, gpus=1.0))
    assert "layers of a path 17.3 GB" in small.problem and small.remedies
    alone = place(held, Machine((), 20 * GB), Work(workers=1))
    assert {part.where for part in alone.parts if part.what == "base"} == {"files"}
    tight = place(held, Machine((), 10 * GB), Work(workers=1))
    assert "layers of all models and what it takes to run" in tight.problem


def test_hops_with_scales_have_weights_of_their_own() -> None:
    plain, held = for_paths(SEVEN, 40), for_paths(SEVEN, 40, 151 * 10**6)
    for machine, work in (
        (Machine((80 * GB,), 128 * GB), Work(workers=1, gpus=1.0)),
        (Machine((), 200 * GB), Work(workers=3, shared=True)),
    ):
        before, after = place(plain, machine, work), place(held, machine, work)
        assert size(before, "weights of hops with scales") == 0
        assert size(after, "weights of hops with scales") == 40 * 151 * 10**6
        left = [each.host_left if each.device_left is None else each.device_left for each in (before, after)]
        assert left[0] - left[1] == work.workers * 40 * 151 * 10**6  # type: ignore[operator]
    small = place(held, Machine((16 * GB,), 128 * GB), Work(workers=1, gpus=1.0))
    assert "(layers of a path 17.3 GB, weights of hops with scales 6.04 GB, the rest to run it)" in small.problem


def test_a_config_says_how_deep(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "paths.yaml").write_text(CONFIG)
    config: Any = load_config(tmp_path / "paths.yaml").config
    held = in_memory(config, SEVEN)
    assert held.live == 0 and held.widths is not None and held.widths.layers == 32  # the models alone are paths too
    shallow = replace(SEVEN, widths=replace(SEVEN.widths, layers=3))
    assert in_memory(config, shallow).widths.layers == 7  # type: ignore[union-attr]
    assert largest_export(config, shallow) == SEVEN.around + 7 * SEVEN.layer
    assert layers_of(replace(SEVEN, widths=None)) == 32
    # What scales need is known from the base's headers; without scales there is nothing.
    known = replace(shallow, folder=saved / "base")
    assert writers_of(saved / "base") == 2 * (24 * 24 + 24 * 40)
    assert in_memory(config, known).scaled == 7 * writers_of(saved / "base") and in_memory(config, shallow).scaled == 0
    off = config.space.data_flow.model_copy(update={"scales": "off"})
    off = config.model_copy(update={"space": config.space.model_copy(update={"data_flow": off})})
    assert in_memory(off, known).scaled == 0
    plain = config.model_copy(update={"space": config.space.model_copy(update={"data_flow": None})})
    assert in_memory(plain, SEVEN) is SEVEN and largest_export(plain, SEVEN) is None
