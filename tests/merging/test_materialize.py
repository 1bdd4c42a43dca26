"""Live models: every architecture, every dtype, every order of candidates."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from merging.checkpoint import SINGLE, Checkpoint
from merging.export import export
from merging.layout import Layout
from merging.materialize import Materializer, MergeFailed, Sources, load_model
from merging.recipe import Assignment, Group, MergingError, Recipe, SourceRef

Build = Callable[..., Recipe]

ARCHITECTURES = ("llama", "llama-tied", "qwen2", "gpt2", "mistral-sharded")

IDS = torch.tensor([[1, 5, 9, 2, 40]])


def ta(a: float, b: float, **parameters: float | bool) -> Assignment:
    return Assignment.of("task_arithmetic", {"a": {"coefficient": a}, "b": {"coefficient": b}}, **parameters)


def linear(a: float, b: float) -> Assignment:
    return Assignment.of("linear", {"a": {"coefficient": a}, "b": {"coefficient": b}}, normalize=False)


def slerp(t: float) -> Assignment:
    return Assignment.of("slerp", {"a": {"coefficient": 1 - t}, "b": {"coefficient": t}})


@pytest.fixture
def live(llama: Sources) -> tuple[Sources, nn.Module, Materializer]:
    model = load_model(llama.path)
    return llama, model, Materializer(llama, model)


def fresh(sources: Sources, recipe: Recipe) -> str:
    """The digest of a recipe in a model that never held another."""
    materializer = Materializer(sources, load_model(sources.path, dtype=recipe.dtype))
    materializer.apply(recipe)
    return materializer.digest()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_live_exported_and_reloaded_are_the_same_bits(
    families: Callable[..., Any], uniform: Build, tmp_path: Path, name: str
) -> None:
    sources = families(name).load()
    model = load_model(sources.path)
    materializer = Materializer(sources, model)
    assert materializer.digest() == sources.canonical_content
    recipe = uniform(sources, ta(0.6, 0.5), {group: slerp(0.3) for group in sources.layout.groups if group.depth == 1})
    applied = materializer.apply(recipe)
    assert set(applied.changed_tensors) == set(sources.tensors) and applied.changed_groups == sources.layout.groups
    folder = export(recipe, sources, tmp_path / "out", max_shard_size=40_000)
    assert Checkpoint.open(folder).content == materializer.digest() != sources.canonical_content
    reloaded = load_model(folder)
    assert torch.equal(reloaded(IDS).logits, model(IDS).logits)
    again = Sources.load(folder, {})
    assert Materializer(again, reloaded).digest() == materializer.digest()


@pytest.mark.parametrize("name", ["llama-tied", "qwen2", "gpt2"])
def test_a_tied_head_is_one_tensor_and_stays_tied(families: Callable[..., Any], uniform: Build, name: str) -> None:
    sources = families(name).load()
    assert not any(group.kind == "head" for group in sources.layout.groups)
    model = load_model(sources.path)
    Materializer(sources, model).apply(uniform(sources, ta(1.0, 0.0)))
    assert model.get_output_embeddings().weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()
    expert = load_model(sources.checkpoints["a"].path)
    assert torch.equal(model.get_output_embeddings().weight, expert.get_output_embeddings().weight)


def test_a_head_that_is_stored_twice_but_tied_is_merged_once(
    families: Callable[..., Any], uniform: Build, tmp_path: Path
) -> None:
    family = families("llama-tied")
    folders = {}
    for alias in ("base", "a"):
        folder = folders[alias] = tmp_path / alias
        shutil.copytree(getattr(family, alias), folder)
        tensors = load_file(folder / SINGLE)
        save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, folder / SINGLE)
    for base, a in ((folders["base"], family.a), (family.base, folders["a"]), (folders["base"], folders["a"])):
        sources = Sources.load(base, {"a": a})
        assert "lm_head.weight" not in sources.tensors
        materializer = Materializer(sources, load_model(base))
        only_a = Assignment.of("task_arithmetic", {"a": {"coefficient": 1.0}})
        materializer.apply(uniform(sources, only_a))
        assert materializer.digest() == Checkpoint.open(family.a).content


def test_an_untied_expert_of_a_tied_base_is_refused(families: Callable[..., Any], tmp_path: Path) -> None:
    family = families("llama-tied")
    shutil.copytree(family.a, tmp_path / "a")
    tensors = load_file(tmp_path / "a" / SINGLE)
    head = tensors["model.embed_tokens.weight"] + 1
    save_file(tensors | {"lm_head.weight": head}, tmp_path / "a" / SINGLE)
    with pytest.raises(MergingError, match="an untied fine-tune cannot be merged into a tied base"):
        Sources.load(family.base, {"a": tmp_path / "a"})


def test_a_tied_expert_of_an_untied_base_lends_its_embedding(
    families: Callable[..., Any], uniform: Build, tmp_path: Path
) -> None:
    family = families("llama")
    shutil.copytree(family.a, tmp_path / "a")
    tensors = load_file(tmp_path / "a" / SINGLE)
    del tensors["lm_head.weight"]
    save_file(tensors, tmp_path / "a" / SINGLE)
    sources = Sources.load(family.base, {"a": tmp_path / "a"})
    model = load_model(family.base)
    Materializer(sources, model).apply(uniform(sources, Assignment.of("linear", {"a": {"coefficient": 1.0}})))
    assert torch.equal(model.lm_head.weight, tensors["model.embed_tokens.weight"])


def test_neither_the_files_nor_the_sources_change(families: Callable[..., Any], uniform: Build) -> None:
    """Live parameters may be memory-mapped from the base's file: writing them must not reach it."""
    sources = families("llama").load()
    before = {alias: ref.content for alias, ref in sources.refs.items()}
    Materializer(sources, load_model(sources.path)).apply(uniform(sources, ta(3.0, -2.0)))
    reopened = {alias: Checkpoint.open(each.path).content for alias, each in sources.checkpoints.items()}
    assert reopened == before
    assert sources.canonical_content == sources.refs["base"].content


def test_only_what_changed_is_rewritten(live: tuple[Sources, nn.Module, Materializer], uniform: Build) -> None:
    sources, _, materializer = live
    first = uniform(sources, ta(0.5, 0.5))
    materializer.apply(first)
    assert materializer.apply(first).changed_tensors == ()
    spelled = uniform(sources, ta(0.5, 0.5, scale=1.0, normalize=False))
    assert materializer.apply(spelled).changed_tensors == (), "another spelling of the same numbers is no change"
    group = Group("mlp", 1)
    applied = materializer.apply(uniform(sources, ta(0.5, 0.5), {group: ta(0.5, 0.6)}))
    assert applied.changed_groups == (group,)
    assert applied.changed_tensors == sources.layout.of_group(group)
    assert applied.seconds > 0


def test_exceptions_by_tensor_win_over_the_group(live: tuple[Sources, nn.Module, Materializer], uniform: Build) -> None:
    sources, model, materializer = live
    name = "model.layers.1.mlp.up_proj.weight"
    plain = uniform(sources, ta(0.5, 0.5))
    materializer.apply(plain)
    recipe = Recipe("base", sources.refs, plain.groups, {name: Assignment.of("linear", {"b": {"coefficient": 1.0}})})
    assert materializer.apply(recipe).changed_tensors == (name,)
    assert torch.equal(model.get_parameter(name), sources.tensor("b", name))


CANDIDATES = (ta(0.3, 0.8), ta(0.3, 0.7), linear(0.5, 0.25), slerp(0.2), linear(1e38, 1e38), linear(3e38, 3e38))


@given(
    history=st.lists(
        st.tuples(st.sampled_from(CANDIDATES), st.sampled_from(CANDIDATES), st.booleans()), min_size=1, max_size=5
    )
)
@settings(deadline=None, max_examples=10)
def test_no_history_leaves_a_trace(
    shared: tuple[Sources, Materializer, Build], history: list[tuple[Assignment, Assignment, bool]]
) -> None:
    """Whatever was written before, failed candidates among them, a recipe's bits are those of a fresh write."""
    sources, materializer, build = shared
    for most, other, special in history:
        exceptions = {Group("attention", 2): other, Group("head"): other} if special else {}
        recipe = build(sources, most, exceptions)
        try:
            materializer.apply(recipe)
        except MergeFailed as failed:
            assert "not finite" in str(failed)
        else:
            assert materializer.digest() == expected_digest(sources, recipe)
    last = build(sources, ta(0.3, 0.8))
    materializer.apply(last)
    assert materializer.digest() == expected_digest(sources, last)


DIGESTS: dict[str, str] = {}


def expected_digest(sources: Sources, recipe: Recipe) -> str:
    if recipe.hash not in DIGESTS:
        DIGESTS[recipe.hash] = fresh(sources, recipe)
    return DIGESTS[recipe.hash]


@pytest.fixture(scope="module")
def shared(llama: Sources, uniform: Build) -> Iterator[tuple[Sources, Materializer, Build]]:
    yield llama, Materializer(llama, load_model(llama.path)), uniform


def test_a_failed_candidate_says_why_and_the_next_one_is_whole(
    live: tuple[Sources, nn.Module, Materializer], uniform: Build
) -> None:
    sources, _, materializer = live
    good = uniform(sources, ta(0.5, 0.5))
    materializer.apply(good)
    digest = materializer.digest()
    # Weights of 0.02 times 3e38 are finite; only where both add up, or a norm of 1 is among them, do they overflow.
    broken = uniform(sources, ta(0.5, 0.5), {Group("norm", 1): linear(3e38, 3e38), Group("head"): ta(1.0, 0.0)})
    with pytest.raises(MergeFailed, match=r"not finite in 2 of 3 rewritten tensors, first in model\.layers\.1\."):
        materializer.apply(broken)
    assert set(materializer.apply(good).changed_groups) == {Group("norm", 1), Group("head")}
    assert materializer.digest() == digest


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_live_models(families: Callable[..., Any], uniform: Build, tmp_path: Path, dtype: str) -> None:
    sources = families("llama", getattr(torch, dtype)).load()
    recipe = uniform(sources, ta(0.7, 0.4))
    model = load_model(sources.path)
    materializer = Materializer(sources, model)
    materializer.apply(recipe)
    name = "model.layers.0.mlp.up_proj.weight"
    base, a, b = (sources.tensor(alias, name).double() for alias in ("base", "a", "b"))
    exact = (base + 0.7 * (a - base) + 0.4 * (b - base)).to(getattr(torch, dtype))
    assert (model.get_parameter(name) == exact).float().mean() > 0.99
    folder = export(recipe, sources, tmp_path / "out")
    assert Checkpoint.open(folder).content == materializer.digest()
    assert Checkpoint.open(folder).config["dtype"] == dtype


@pytest.mark.parametrize(("stored", "dtype"), [(torch.float32, "bfloat16"), (torch.bfloat16, "float32")])
def test_the_recipes_dtype_rules(
    families: Callable[..., Any], uniform: Build, tmp_path: Path, stored: torch.dtype, dtype: str
) -> None:
    sources = families("llama", stored).load()
    recipe = uniform(sources, ta(0.7, 0.4), dtype=dtype)
    materializer = Materializer(sources, load_model(sources.path, dtype=dtype))
    materializer.apply(recipe)
    folder = export(recipe, sources, tmp_path / "out")
    assert Checkpoint.open(folder).content == materializer.digest()
    assert {info.dtype for info in Checkpoint.open(folder).tensors.values()} == {getattr(torch, dtype)}
    with pytest.raises(MergingError, match="what is scored would not be what is exported"):
        materializer.apply(uniform(sources, ta(0.7, 0.4)))


def test_rounding_the_sources_first_is_another_recipe(live: tuple[Sources, nn.Module, Materializer]) -> None:
    sources, model, materializer = live
    groups = dict.fromkeys(sources.layout.groups, linear(1.0, 0.0))
    recipe = Recipe("base", sources.refs, groups, source_dtype="bfloat16")
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe
    plain = Recipe("base", sources.refs, groups)
    assert recipe.hash != plain.hash
    materializer.apply(plain)
    assert set(materializer.apply(recipe).changed_tensors) == set(sources.tensors)
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(model.get_parameter(name), sources.tensor("a", name).bfloat16().float())


def test_integers_and_stored_masks_come_from_the_base(
    families: Callable[..., Any], uniform: Build, tmp_path: Path
) -> None:
    """Old GPT-2 checkpoints store causal masks as weights; no class has a parameter for them any more."""
    family = families("gpt2")
    for number, alias in enumerate(("base", "a", "b")):
        shutil.copytree(getattr(family, alias), tmp_path / alias)
        tensors = load_file(tmp_path / alias / SINGLE)
        tensors["transformer.h.0.attn.bias"] = torch.full((1, 1, 8, 8), float(number))
        tensors["steps"] = torch.tensor([number])
        save_file(tensors, tmp_path / alias / SINGLE)
    sources = Sources.load(tmp_path / "base", {"a": tmp_path / "a", "b": tmp_path / "b"})
    assert sources.frozen == ("steps", "transformer.h.0.attn.bias")
    recipe = uniform(sources, ta(1.0, 1.0))
    materializer = Materializer(sources, load_model(family.base))
    materializer.apply(recipe)
    folder = export(recipe, sources, tmp_path / "out")
    merged = Checkpoint.open(folder)
    assert merged.content == materializer.digest()
    assert merged.read("steps").tolist() == [0] and merged.read("transformer.h.0.attn.bias").max() == 0


def test_names_with_and_without_the_model_prefix_are_found(
    families: Callable[..., Any], uniform: Build, tmp_path: Path
) -> None:
    family = families("gpt2")
    for alias in ("base", "a"):
        shutil.copytree(getattr(family, alias), tmp_path / alias)
        tensors = load_file(tmp_path / alias / SINGLE)
        save_file({name.removeprefix("transformer."): t for name, t in tensors.items()}, tmp_path / alias / SINGLE)
    sources = Sources.load(tmp_path / "base", {"a": tmp_path / "a"})
    assert "wte.weight" in sources.tensors
    model = load_model(tmp_path / "base")
    Materializer(sources, model).apply(uniform(sources, Assignment.of("linear", {"a": {"coefficient": 1.0}})))
    expert = load_model(family.a)
    assert torch.equal(model(IDS).logits, expert(IDS).logits)


def test_a_model_that_does_not_hold_the_base_is_refused(families: Callable[..., Any]) -> None:
    family = families("llama")
    sources = family.load()
    with pytest.raises(MergingError, match=r"found other weights in \d+ tensors.*Load it with load_model"):
        Materializer(sources, load_model(family.a))
    with pytest.raises(MergingError, match="have no parameter in the live GPT2LMHeadModel"):
        Materializer(sources, load_model(families("gpt2").base))


def test_a_parameter_that_no_checkpoint_holds_is_refused(families: Callable[..., Any]) -> None:
    sources = families("llama").load()
    model = load_model(sources.path)
    model.extra = nn.Linear(2, 2, bias=False)
    with pytest.raises(MergingError, match=r"1 parameters .* are not in the checkpoint: extra\.weight"):
        Materializer(sources, model)


def test_a_moved_or_untied_model_is_noticed(families: Callable[..., Any], uniform: Build) -> None:
    sources = families("llama-tied").load()
    recipe = uniform(sources, ta(0.5, 0.5))
    model = load_model(sources.path)
    materializer = Materializer(sources, model)
    head = model.get_output_embeddings()
    head.weight = nn.Parameter(head.weight.clone(), requires_grad=False)
    with pytest.raises(MergingError, match="moved, replaced or untied"):
        materializer.apply(recipe)
    model = load_model(sources.path)
    materializer = Materializer(sources, model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()
    with pytest.raises(MergingError, match="moved, replaced or untied"):
        materializer.apply(recipe)


def test_recipes_that_do_not_fit_are_refused_before_anything_is_written(
    live: tuple[Sources, nn.Module, Materializer], uniform: Build
) -> None:
    sources, _, materializer = live
    good = uniform(sources, ta(0.5, 0.5))
    before = materializer.digest()
    other = {**sources.refs, "a": SourceRef("elsewhere", "sha256:0")}
    groups = dict(good.groups)
    some = dict(list(groups.items())[:-1])
    cases = [
        (Recipe("base", other, groups), "the recipe's source 'a' \\(elsewhere\\) was sha256:0"),
        (Recipe("a", sources.refs, groups), "the recipe's base 'a' is not the base that was loaded"),
        (Recipe("base", sources.refs, some), "the recipe says nothing about tensor"),
        (Recipe("base", sources.refs, {**groups, Group("mlp", 99): ta(1, 1)}), "does not have: mlp\\.99"),
        (Recipe("base", sources.refs, groups, {"ghost": ta(1, 1)}), "not merged in .*: ghost"),
        (uniform(sources, Assignment.of("linear", {"c": {"coefficient": 1.0}})), "assigns source 'c' but lists only"),
        (uniform(sources, ta(0.5, 0.5), dtype="int8"), "expected a dtype of float32"),
        (uniform(sources, Assignment.of("soup", {})), "there is no merge method 'soup'"),
    ]
    for recipe, message in cases:
        with pytest.raises(MergingError) as caught:
            materializer.apply(recipe)
        assert re.search(message, str(caught.value)), message
    assert materializer.digest() == before


def test_sources_are_found_by_content_under_other_aliases(
    families: Callable[..., Any], live: tuple[Sources, nn.Module, Materializer], uniform: Build
) -> None:
    sources, _, materializer = live
    recipe = uniform(sources, ta(0.9, 0.1))
    family = families("llama")
    renamed = Sources.load(family.base, {"b": family.a, "other": family.b})
    materializer.apply(recipe)
    twin = Materializer(renamed, load_model(family.base))
    twin.apply(recipe)
    assert twin.digest() == materializer.digest()


def test_what_transformers_cannot_load_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MergingError, match="causal language model that transformers can load"):
        load_model(tmp_path)
    with pytest.raises(MergingError, match="expected a dtype of"):
        load_model(tmp_path, dtype="int4")


def test_layouts_of_real_models_are_complete(families: Callable[..., Any]) -> None:
    for name in ARCHITECTURES:
        sources = families(name).load()
        layout: Layout = sources.layout
        assert layout.depth() == 3
        assert "other" not in {group.kind for group in layout.groups}
        assert {group.kind for group in layout.groups if group.depth == 2} == {"attention", "mlp", "norm"}
