"""What is run is what is exported: the weights of a live path with scales, bit for bit, in every dtype, whatever was
laid before; and what they take of memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_models import adapt
from families import Family
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from path_models import Hops, path_recipe, save_path_family
from torch import Tensor, nn

from merging.checkpoint import Checkpoint
from merging.dataflow import PathMaterializer
from merging.export import export
from merging.kernel import MergeFailed
from merging.live import load_model
from merging.recipe import Recipe
from merging.sources import Sources
from merging.verification import same_bits

IDS = torch.tensor([[1, 7, 30, 12, 44, 3, 9, 21], [1, 50, 31, 9, 9, 11, 4, 6]])
DEEP: Hops = [("a", 0), ("b", 2), ("b", 2), ("base", 1), ("a", 1), ("b", 3), ("a", 3)]
SCALES = (1.2, 0.7, 1.0, 1.3, 0.9, 0.8, 1.1)
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}

Opened = tuple[Sources, nn.Module, PathMaterializer]


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Family]:
    made: dict[tuple[str, torch.dtype], Family] = {}

    def family(name: str, dtype: torch.dtype = torch.bfloat16) -> Family:
        if (name, dtype) not in made:
            made[name, dtype] = save_path_family(name, tmp_path_factory.mktemp(name), dtype)
        return made[name, dtype]

    return family


def opened(family: Family, dtype: str | None = None, **options: Any) -> Opened:
    sources, model = family.load(), load_model(family.base, dtype=dtype)
    return sources, model, PathMaterializer(sources, model, **options)


@torch.no_grad()
def live(model: nn.Module) -> Tensor:
    found: Tensor = model(IDS, use_cache=False).logits
    return found


def assert_is_exported(live_one: Opened, recipe: Recipe, out: Path) -> None:
    """The modules that are run hold the bits of the export, which is read by the library itself."""
    sources, model, paths = live_one
    paths.apply(recipe)
    exported = load_model(export(recipe, sources, out))
    found, expected = model.state_dict(), exported.state_dict()
    assert found.keys() == expected.keys()
    assert [name for name in found if not same_bits(found[name], expected[name])] == []
    assert paths.digest() == Checkpoint.open(out).content
    # the same function of the same bits, but for the order in which some processors add up
    tolerance = 1e-5 if found[next(iter(found))].dtype == torch.float32 else 2e-2
    torch.testing.assert_close(live(model), live(exported), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("name", "kept", "run"),
    [
        ("llama", "bfloat16", None),
        pytest.param("llama", "float32", None, marks=pytest.mark.slow),
        pytest.param("llama", "float32", "bfloat16", marks=pytest.mark.slow),
        pytest.param("llama", "bfloat16", "float32", marks=pytest.mark.slow),
        pytest.param("gpt2", "bfloat16", None, marks=pytest.mark.slow),  # matrices that are transposed, and biases
        ("mixtral", "bfloat16", None),  # experts that are apart on disk and one tensor in memory
        pytest.param("phi", "bfloat16", None, marks=pytest.mark.slow),  # both writers read the same norm
        pytest.param("qwen2-kinds", "bfloat16", None, marks=pytest.mark.slow),
    ],
)
def test_every_weight_that_is_run_is_the_exported_one(
    name: str, kept: str, run: str | None, stored: Callable[..., Family], tmp_path: Path
) -> None:
    live_one = opened(stored(name, DTYPES[kept]), run)
    for number, scales in enumerate((SCALES, None, SCALES[::-1])):
        assert_is_exported(live_one, path_recipe(live_one[0], DEEP, "b", scales, run), tmp_path / str(number))


HOPS = st.tuples(st.sampled_from(["base", "a", "b"]), st.integers(0, 3), st.just(1.0) | st.floats(0.4, 1.5))
PATHS = st.lists(st.lists(HOPS, min_size=1, max_size=24), min_size=1, max_size=3)


@pytest.mark.slow
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(paths=PATHS)
def test_paths_short_and_long_one_after_the_other(
    stored: Callable[..., Family], tmp_path_factory: pytest.TempPathFactory, paths: list[list[tuple[str, int, float]]]
) -> None:
    live_one = opened(stored("llama"))
    for path in paths:
        recipe = path_recipe(live_one[0], [hop[:2] for hop in path], "a", [scale for _, _, scale in path])
        assert_is_exported(live_one, recipe, tmp_path_factory.mktemp("path") / "out")


def test_what_an_adapter_changes_is_multiplied_as_it_is_exported(tmp_path: Path) -> None:
    family = save_path_family("llama", tmp_path)
    torch.manual_seed(5)
    adapted = adapt("llama", family.base, tmp_path / "lora", target_modules=["o_proj", "down_proj"], r=2, lora_alpha=4)
    sources = Sources.load(family.base, {"a": adapted.adapter, "b": family.b})
    model = load_model(family.base)
    paths = PathMaterializer(sources, model)
    assert_is_exported((sources, model, paths), path_recipe(sources, DEEP, "a", SCALES), tmp_path / "out")


def test_hops_share_all_but_what_a_scale_multiplies(stored: Callable[..., Family]) -> None:
    sources, model, paths = opened(stored("llama"))
    hops: Hops = [("a", 1), ("a", 1), ("a", 1), ("a", 1), ("b", 1)]
    paths.apply(path_recipe(sources, hops, "a", (0.5, 1.0, 2.0, 0.5, 1.0)))  # multiplied by 2, 2, 1, 2, 2
    held = [dict(model.get_submodule(f"model.layers.{number}").named_parameters()) for number in range(5)]
    for name in held[0]:
        address = [each[name].data_ptr() for each in held]
        shared = sources.tensor("a", f"model.layers.1.{name}").data_ptr()
        if name in ("self_attn.o_proj.weight", "mlp.down_proj.weight"):
            assert address[0] == address[1] == address[3] != shared == address[2]
            assert address[4] not in (address[0], sources.tensor("b", f"model.layers.1.{name}").data_ptr())
        else:
            assert address[0] == address[1] == address[2] == address[3] == shared != address[4]
    hop = sum(held[0][name].nbytes for name in ("self_attn.o_proj.weight", "mlp.down_proj.weight"))
    assert paths.bytes[1] == 0 and paths.scaled_bytes == 2 * hop


def test_the_next_path_has_the_memory_of_the_last(stored: Callable[..., Family]) -> None:
    sources, model, paths = opened(stored("llama"))

    def memory(hops: Hops, scales: Sequence[float] | None) -> set[int]:
        paths.apply(path_recipe(sources, hops, "a", scales))
        writers = [model.get_submodule(f"model.layers.{number}.mlp.down_proj") for number in range(len(hops))]
        return {next(each.parameters()).data_ptr() for each in writers}

    steps = (1.2, 0.7, 1.1, 1.3, 0.9, 0.8, 1.1)
    first = memory(DEEP, steps)
    size = paths.scaled_bytes
    assert size > 0 and len(first) == 7
    for scales in (steps[::-1], (0.9,) * 7, steps):
        assert memory(DEEP[::-1], scales) == first
    assert memory(DEEP[:3], (1.0, 1.0, 1.1)) & first and memory(DEEP, None).isdisjoint(first)
    assert memory(DEEP, steps) == first and paths.scaled_bytes == size
    # What a path has in common with the last one is not computed again, and is right where something wrote to it.
    wanted, digest = live(model), paths.digest()
    with torch.no_grad():
        model.get_parameter("model.layers.3.mlp.down_proj.weight").zero_()
    paths.forget()
    memory(DEEP, steps)
    assert torch.equal(live(model), wanted) and paths.digest() == digest and paths.scaled_bytes == size


def test_applied_names_what_a_scale_changes(stored: Callable[..., Family]) -> None:
    sources, _, paths = opened(stored("llama"))
    paths.apply(path_recipe(sources, DEEP, "a", SCALES))
    assert paths.apply(path_recipe(sources, DEEP, "a", SCALES)).changed_tensors == ()
    # One scale moves all that follows; where the product is as it was, nothing is another.
    applied = paths.apply(path_recipe(sources, DEEP, "a", (*SCALES[:3], 2.6, 0.45, *SCALES[5:])))
    assert {group.depth for group in applied.changed_groups} == {3}
    assert set(applied.changed_tensors) == {
        f"model.layers.3.{leaf}.weight" for leaf in ("self_attn.o_proj", "mlp.down_proj")
    }


def test_products_that_are_no_numbers_are_refused(stored: Callable[..., Family], tmp_path: Path) -> None:
    sources, model, paths = opened(stored("llama", torch.float32), "float16")
    good = path_recipe(sources, DEEP, "a", SCALES, "float16")
    paths.apply(good)
    wanted, size = live(model), paths.scaled_bytes
    bad = path_recipe(sources, DEEP, "a", (1.0, 1e-3, 1e-4, *SCALES[3:]), "float16")
    for refuse in (lambda: paths.apply(bad), lambda: export(bad, sources, tmp_path / "out")):
        with pytest.raises(MergeFailed, match=r"not finite in \d+ of \d+ rewritten tensors, first in model\.layers\."):
            refuse()
    paths.apply(good)
    assert torch.equal(live(model), wanted) and paths.scaled_bytes == size
