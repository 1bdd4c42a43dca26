"""Layers of whatever stands where a model stands, in whatever dtype and place; and the models that there are no paths
through."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from adapter_models import adapt
from families import Family
from path_models import SPECIAL, path_recipe, save_path_family
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from merging.arena import Home
from merging.checkpoint import SINGLE, Checkpoint
from merging.dataflow import PathMaterializer, blocks
from merging.dataflow.hops import Numbered, numbers_of
from merging.export import export
from merging.live import load_model
from merging.materialize import Materializer
from merging.opening import open_model
from merging.recipe import Assignment, MergingError
from merging.sources import Sources
from merging.vectors.extract import About, Coding, write_vector

IDS = torch.tensor([[1, 7, 30, 12, 44, 3, 9, 21]])
HOPS = [("a", 0), ("b", 2), ("b", 2), ("base", 1), ("a", 3)]
UP = "model.layers.{}.mlp.up_proj.weight"


@torch.no_grad()
def live(model: nn.Module) -> Tensor:
    found: Tensor = model(IDS, use_cache=False).logits
    return found


@pytest.fixture(scope="module")
def llamas(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return save_path_family("llama", tmp_path_factory.mktemp("llamas"))


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return save_path_family("llama", tmp_path_factory.mktemp("halves"), torch.bfloat16)


@pytest.mark.parametrize("home", ["host", "mmap", "shared"])
def test_wherever_the_sources_are_the_model_is_the_same(home: Home, llamas: Family) -> None:
    sources, model = llamas.load(), load_model(llamas.base)
    paths = PathMaterializer(sources, model, home=home)
    paths.apply(path_recipe(sources, HOPS))
    assert paths.bytes[1] == 0
    other = PathMaterializer(again := llamas.load(), second := load_model(llamas.base))
    other.apply(path_recipe(again, HOPS))
    assert paths.digest() == other.digest() and torch.equal(live(model), live(second))


def test_models_in_bfloat16_are_run_as_they_are_stored(halves: Family, tmp_path: Path) -> None:
    sources, model = halves.load(), load_model(halves.base)
    paths = PathMaterializer(sources, model)
    recipe = path_recipe(sources, HOPS, scales=(1.5, 0.5, 1.0, 2.0, 0.25))
    paths.apply(recipe)
    assert paths.bytes[1] == 0 and model.get_parameter(UP.format(1)).dtype == torch.bfloat16
    out = export(recipe, sources, tmp_path / "out")
    assert paths.digest() == Checkpoint.open(out).content
    torch.testing.assert_close(live(model), live(load_model(out)), rtol=1e-2, atol=1e-2)


def test_another_dtype_is_cast_once_and_once_only(halves: Family, tmp_path: Path) -> None:
    sources, model = halves.load(), load_model(halves.base, dtype=torch.float32)
    paths = PathMaterializer(sources, model)
    recipe = path_recipe(sources, HOPS, dtype="float32")
    paths.apply(recipe)
    first = paths.tensors[UP.format(1)]
    assert first.dtype == torch.float32 and paths.tensors[UP.format(2)].data_ptr() == first.data_ptr()
    out = export(recipe, sources, tmp_path / "out")
    assert paths.digest() == Checkpoint.open(out).content
    assert torch.equal(live(model), live(load_model(out)))
    paths.apply(path_recipe(sources, [("b", 2)], dtype="float32"))
    assert paths.tensors[UP.format(0)].data_ptr() == first.data_ptr()
    with pytest.raises(MergingError, match=r"in torch.bfloat16, but the live model holds it in torch.float32"):
        paths.apply(path_recipe(sources, HOPS))
    with pytest.raises(MergingError, match=r"makes lm_head.weight of 'a' in torch.float16, .*dtype 'float32'"):
        paths.apply(path_recipe(sources, HOPS, dtype="float16"))


def test_models_stored_in_several_dtypes_are_run_in_one(tmp_path: Path) -> None:
    family = save_path_family("llama", tmp_path, torch.bfloat16)
    for folder in (family.base, family.a, family.b):
        tensors = load_file(folder / SINGLE)
        norms = {name: each.float() for name, each in tensors.items() if "norm" in name}
        save_file(tensors | norms, folder / SINGLE, metadata={"format": "pt"})
    sources, model = family.load(), load_model(family.base, dtype=torch.float32)
    paths = PathMaterializer(sources, model)
    recipe = path_recipe(sources, HOPS, dtype="float32")
    paths.apply(recipe)
    assert paths.digest() == Checkpoint.open(export(recipe, sources, tmp_path / "out")).content


def test_where_copies_have_no_room_those_of_a_path_are_kept(halves: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "free_memory", lambda: 0)
    sources, model = halves.load(), load_model(halves.base, dtype=torch.float32)
    paths = PathMaterializer(sources, model)
    recipe = path_recipe(sources, HOPS, dtype="float32")
    paths.apply(recipe)
    wanted, kept = live(model), paths.bytes[1]
    layer = sum(info.numel for name, info in sources.tensors.items() if name.startswith("model.layers.0.")) * 4
    outside = sum(info.numel for name, info in sources.tensors.items() if "layers" not in name) * 4
    assert kept <= 4 * layer + 2 * outside
    paths.apply(path_recipe(sources, [("b", 1)], dtype="float32"))
    assert paths.bytes[1] <= layer + 2 * outside
    paths.apply(recipe)
    assert torch.equal(live(model), wanted)


def test_the_weights_that_the_live_model_came_with_are_let_go(llamas: Family) -> None:
    model = load_model(llamas.base)
    before = {each.data_ptr() for each in model.parameters()}
    sources = llamas.load()
    PathMaterializer(sources, model)
    after = {each.data_ptr() for each in model.parameters()}
    held = {sources.tensor("base", name).data_ptr() for name in sources.tensors}
    assert not before & after and after <= held


def test_adapters_and_vectors_give_layers(tmp_path: Path) -> None:
    """An adapter's layers are those of its merge, a vector's those of its fine-tune; both are made once."""
    base = save_path_family("llama", tmp_path)
    torch.manual_seed(5)
    adapted = adapt("llama", base.base, tmp_path / "lora", target_modules=["q_proj", "down_proj"], r=2, lora_alpha=4)
    origin = open_model(base.base)
    (tmp_path / "vector").mkdir()
    write_vector(tmp_path / "vector", origin, open_model(base.b, origin), About("b"), Coding())
    sources = Sources.load(base.base, {"a": adapted.adapter, "b": tmp_path / "vector"})
    whole = Sources.load(base.base, {"a": sources.path, "b": base.b})
    model, plain = load_model(base.base), load_model(base.base)
    paths, other = PathMaterializer(sources, model), PathMaterializer(whole, plain)
    hops = [("a", 0), ("b", 2), ("b", 2), ("a", 3), ("a", 0)]
    recipe = path_recipe(sources, hops)
    paths.apply(recipe)
    out = export(recipe, sources, tmp_path / "out")
    assert paths.digest() == Checkpoint.open(out).content
    assert torch.equal(live(model), live(load_model(out)))
    down = "model.layers.{}.mlp.down_proj.weight"
    merged = Checkpoint.open(adapted.merged)
    torch.testing.assert_close(paths.tensors[down.format(0)], merged.read(down.format(0)), rtol=0, atol=1e-6)
    assert paths.tensors[down.format(0)].data_ptr() == paths.tensors[down.format(4)].data_ptr()
    # What the adapter leaves as it is, is the base's own memory.
    assert paths.tensors[UP.format(0)].data_ptr() == sources.tensor("base", UP.format(0)).data_ptr()
    only_b = [("b", layer) for layer in range(4)]
    paths.apply(path_recipe(sources, only_b, "b"))
    other.apply(path_recipe(whole, only_b, "b"))
    assert torch.equal(live(model), live(plain))
    digest = paths.digest()
    paths.forget()
    paths.apply(path_recipe(sources, only_b, "b"))
    assert paths.digest() == digest


@pytest.mark.parametrize("home", ["host", "mmap", "shared"])
def test_what_something_else_wrote_is_put_right(home: Home, llamas: Family) -> None:
    sources, model = llamas.load(), load_model(llamas.base)
    paths = PathMaterializer(sources, model, home=home)
    recipe = path_recipe(sources, HOPS)
    paths.apply(recipe)
    wanted, digest = live(model), paths.digest()
    with torch.no_grad():
        model.get_parameter("model.layers.1.mlp.up_proj.weight").mul_(2.0)
        model.get_parameter("lm_head.weight").zero_()
    head: Any = model.get_submodule("lm_head")
    head.weight = nn.Parameter(torch.ones_like(head.weight))
    block: Any = model.get_submodule("model.layers.2")
    block.register_forward_hook(lambda module, args, output: output * 0)
    block.mlp = nn.Identity()
    assert not torch.equal(live(model), wanted)
    paths.forget()
    paths.apply(recipe)
    assert torch.equal(live(model), wanted) and paths.digest() == digest
    fresh = llamas.load()
    assert all(torch.equal(fresh.tensor("b", name), sources.tensor("b", name)) for name in sources.tensors)


def test_only_paths_are_taken(llamas: Family) -> None:
    sources, model = llamas.load(), load_model(llamas.base)
    paths = PathMaterializer(sources, model)
    recipe = path_recipe(sources, HOPS)

    def refused(match: str, **changes: Any) -> None:
        with pytest.raises(MergingError, match=match):
            paths.apply(replace(recipe, **changes))

    groups = dict(recipe.groups)
    inside = next(group for group in groups if group.depth == 1)
    half = Assignment.of("passthrough", {"b": {}}, scale=0.5)
    refused(r"one layer of one model as it is.*found passthrough of b times 0.5 for", groups={**groups, inside: half})
    two = Assignment.of("task_arithmetic", {"a": {"coefficient": 0.5}})
    refused(r"found task_arithmetic of a for .*needs a Materializer", groups={**groups, inside: two})
    other = Assignment.of("passthrough", {"a": {}})
    refused(r"block 1 of a path to be one layer of one model, found layers of a, b", groups={**groups, inside: other})
    refused(r"exceptions for 1 tensors, first lm_head.weight", tensors={"lm_head.weight": half})
    refused(r"rounded to bfloat16 first", source_dtype="bfloat16")
    refused(r"made from block 9 of 'a', which has 4: 0 to 3", layers=({"a": 9}, *recipe.layers[1:]))  # type: ignore[index]
    refused(r"5 blocks and names groups of block|4 blocks and names groups of block 4", layers=recipe.layers[:4])  # type: ignore[index]
    refused(r"give that block no layer of that model", layers=({"b": 0}, *recipe.layers[1:]))  # type: ignore[index]
    assert torch.equal(live(model), live(load_model(llamas.base)))


STACKS = {
    "T5ForConditionalGeneration": {
        "vocab_size": 53, "d_model": 24, "d_ff": 40, "num_layers": 2, "num_heads": 4, "d_kv": 6,
    },
    "WhisperForConditionalGeneration": {
        "vocab_size": 53, "d_model": 24, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
        "decoder_attention_heads": 4, "encoder_ffn_dim": 40, "decoder_ffn_dim": 40, "num_mel_bins": 8,
        "max_source_positions": 16, **SPECIAL, "decoder_start_token_id": 1,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", STACKS)
def test_models_of_several_stacks_are_refused_in_words(name: str, tmp_path: Path, quiet: None) -> None:
    cls = getattr(transformers, name)
    cls(cls.config_class(**STACKS[name])).save_pretrained(tmp_path / "base")
    sources = Sources.load(tmp_path / "base", {})
    with pytest.raises(MergingError, match=r"models with one stack of blocks; .* has '.*', '"):
        PathMaterializer(sources, load_model(tmp_path / "base"))


def test_layers_that_know_their_place_are_refused(tmp_path: Path) -> None:
    """GPT-2's attention divided by the number of its layer is another function at another place."""
    family = save_path_family("gpt2", tmp_path, scale_attn_by_inverse_layer_idx=True)
    with pytest.raises(MergingError, match=r"layer 3 as block 0 of a deeper model has attn\.scaling 0\.4\d* instead"):
        PathMaterializer(family.load(), load_model(family.base))


def test_numbers_are_told_from_what_is_equal_to_one() -> None:
    """A layer's number in some of the layers; a size that happens to be 0, a flag, and a number that is another's."""

    def layer(number: int, **more: Any) -> nn.Module:
        made, inner = nn.Module(), nn.Module()
        for name, value in {"layer_idx": number, "flag": bool(number), "first": 0, **more}.items():
            setattr(inner, name, value)
        made.inner = inner
        return made

    layers = [layer(0), layer(1, place=1), layer(2, place=2, off=3)]
    assert set(numbers_of(layers)) == {Numbered("inner", "layer_idx"), Numbered("inner", "place")}
    assert numbers_of([layer(0, place=0)]) == (Numbered("inner", "layer_idx"),)


@pytest.fixture
def sandwich(tmp_path: Path) -> Iterator[Family]:
    yield save_path_family("olmo2", tmp_path)


def test_norms_behind_sublayers_refuse_scales_alone(sandwich: Family) -> None:
    sources, model = sandwich.load(), load_model(sandwich.base)
    paths = PathMaterializer(sources, model)
    paths.apply(path_recipe(sources, HOPS))
    before = live(model)
    with pytest.raises(MergingError, match=r"scales of hops cannot be folded"):
        paths.apply(path_recipe(sources, HOPS, scales=(1.0, 0.5, 1.0, 1.0, 1.0)))
    assert torch.equal(live(model), before)


def test_another_base_in_the_live_model_is_refused(llamas: Family) -> None:
    with pytest.raises(MergingError, match="expected the live model to hold the base"):
        PathMaterializer(llamas.load(), load_model(llamas.a))


def test_both_materializers_are_alike(llamas: Family, uniform: Callable[..., Any]) -> None:
    """Whoever holds one may hold the other."""
    public = {name for name in dir(Materializer) if not name.startswith("_")}
    assert public <= {name for name in dir(PathMaterializer) if not name.startswith("_")}
    sources = llamas.load()
    paths, model = PathMaterializer(sources, load_model(llamas.base)), Materializer(sources, load_model(llamas.base))
    plain = uniform(sources, Assignment.of("passthrough", {"b": {}}))
    paths.apply(plain), model.apply(plain)
    assert paths.digest() == model.digest() and paths.tensors.keys() == model.tensors.keys()
