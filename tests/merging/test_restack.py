"""Models from blocks of others: what they hold, that they load, and that they compute what they should."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from golden import GOLDEN, invoke
from torch import Tensor
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from merging.checkpoint import Checkpoint
from merging.configs import read_config
from merging.export import export
from merging.recipe import Assignment, Group, MergingError, Recipe
from merging.restack import Restacked, for_recipe, restack, restacked_config
from merging.sources import Sources

UP = "model.layers.{}.mlp.up_proj.weight"


def logits(folder: Path) -> Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        found: Tensor = model(torch.arange(1, 20)[None]).logits
    return found


def run(tmp_path: Path, data: dict[str, Any], name: str = "out") -> Path:
    path = tmp_path / f"{name}.yml"
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    result = invoke("merge", path, tmp_path / name)
    if result.exception is not None:
        raise result.exception
    return tmp_path / name


def passthrough(*slices: tuple[Path, int, int], **more: Any) -> dict[str, Any]:
    return {
        "merge_method": "passthrough",
        "slices": [{"sources": [{"model": str(m), "layer_range": [a, b]}]} for m, a, b in slices],
    } | more


def test_a_view_has_the_results_names_and_the_sources_tensors(llama: Sources) -> None:
    view = restack(llama, ({"a": 2}, {"base": 0, "b": 1}, {"b": 2}, {"b": 2}))
    assert isinstance(view, Restacked) and view.layout.depth() == 4
    assert torch.equal(view.tensor("a", UP.format(0)), llama.tensor("a", UP.format(2)))
    assert torch.equal(view.tensor("b", UP.format(1)), llama.tensor("b", UP.format(1)))
    assert torch.equal(view.tensor("base", UP.format(1)), llama.tensor("base", UP.format(0)))
    assert torch.equal(view.tensor("b", UP.format(3)), view.tensor("b", UP.format(2)))
    assert torch.equal(view.tensor("a", "lm_head.weight"), llama.tensor("a", "lm_head.weight"))
    assert view.refs == llama.refs and view.config["num_hidden_layers"] == 4
    assert llama.layout.depth() == 3 and llama.config["num_hidden_layers"] == 3
    with pytest.raises(MergingError, match=r"merges 'a' into .*layers\.2\..* no block of that model, only of b"):
        view.tensor("a", UP.format(2))
    assert restack(llama, None) is llama


def test_statistics_of_the_view_are_not_those_of_the_sources(llama: Sources) -> None:
    view = restack(llama, ({"a": 2}, {"a": 0}))
    assert torch.equal(llama.pool(("a",)).sources(UP.format(0))[0], llama.tensor("a", UP.format(0)))
    assert torch.equal(view.pool(("a",)).sources(UP.format(0))[0], llama.tensor("a", UP.format(2)))


@pytest.mark.parametrize("name", ["llama", "llama-tied", "qwen2", "gpt2", "mistral-sharded"])
def test_stacks_reload_and_run(name: str, families: Callable[..., Any], tmp_path: Path) -> None:
    family = families(name)
    out = run(tmp_path, passthrough((family.a, 0, 2), (family.b, 1, 3), (family.a, 2, 3), dtype="float32"))
    config = json.loads((out / "config.json").read_text())
    assert config.get("num_hidden_layers", config.get("n_layer")) == 5
    model, loading = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"] and not loading["mismatched_keys"]
    assert model.config.num_hidden_layers == 5
    assert torch.isfinite(logits(out)).all()
    # Put together by hand from the same modules, it is the same function.
    a, b = (AutoModelForCausalLM.from_pretrained(path).eval() for path in (family.a, family.b))

    def stack(whole: Any) -> Any:
        return whole.transformer if name == "gpt2" else whole.model

    def listed(whole: Any) -> Any:
        return stack(whole).h if name == "gpt2" else stack(whole).layers

    blocks = [listed(a)[0], listed(a)[1], listed(b)[1], listed(b)[2], listed(a)[2]]
    for own, block in zip(listed(model), blocks, strict=True):
        own.load_state_dict(block.state_dict())
    with torch.no_grad():
        rebuilt = model.eval()(torch.arange(1, 20)[None]).logits
    assert torch.equal(rebuilt, logits(out))


@pytest.mark.parametrize(
    ("name", "outputs"),
    [("llama", ["o_proj", "down_proj"]), ("qwen2", ["o_proj", "down_proj"]), ("gpt2", ["c_proj"])],
)
def test_repeated_blocks_with_silenced_outputs_change_nothing(
    name: str, outputs: list[str], families: Callable[..., Any], tmp_path: Path
) -> None:
    """Block expansion (Wu et al. 2024, arXiv 2401.02415): a residual block that adds zero is the identity."""
    family = families(name)
    silent = [*({"filter": each, "value": 0.0} for each in outputs), {"value": 1.0}]
    data = passthrough((family.a, 0, 2), (family.a, 1, 2), (family.a, 2, 3), (family.a, 0, 3), dtype="float32")
    for index in (1, 3):
        data["slices"][index]["sources"][0]["parameters"] = {"scale": silent}
    out = run(tmp_path, data)
    assert torch.equal(logits(out), logits(family.a))
    loud = passthrough((family.a, 0, 2), (family.a, 1, 2), (family.a, 2, 3), dtype="float32")
    assert not torch.allclose(logits(run(tmp_path, loud, "loud")), logits(family.a), atol=1e-3)


@pytest.mark.parametrize("method", ["ties", "task_arithmetic", "dare_linear", "slerp", "linear", "model_stock"])
def test_any_method_merges_stacked_blocks(method: str, llama: Sources, uniform: Any, tmp_path: Path) -> None:
    """A stack of merged blocks is the merge of what would be a model of those blocks."""
    values: dict[str, Any] = {} if method == "model_stock" else {"coefficient": 0.5}
    if method in {"ties", "dare_linear"}:
        values["density"] = 0.5
    order = (2, 0, 0)
    layers = tuple({"base": at, "a": at, "b": (at + 1) % 3} for at in order)
    view = restack(llama, layers)
    recipe = replace(uniform(view, Assignment.of(method, {"a": values, "b": values})), layers=layers)
    out = Checkpoint.open(export(recipe, llama, tmp_path / "out"))
    again = read_config(tmp_path / "out" / "recipe.yaml")
    assert again[0].hash == recipe.hash and again[0].layers == layers
    # The same blocks as models of their own, merged without any layers:
    folders = {}
    for alias in ("base", "a", "b"):
        only = {g: Assignment.of("passthrough", {alias: {}}) for g in view.layout.groups}
        stacked = Recipe("base", llama.refs, only, layers=layers)
        folders[alias] = export(stacked, llama, tmp_path / alias)
    plain = Sources.load(folders.pop("base"), folders)
    merged = uniform(plain, Assignment.of(method, {"a": values, "b": values}))
    expected = Checkpoint.open(export(merged, plain, tmp_path / "expected"))
    if method == "dare_linear":  # masks are drawn by the models' contents, which are others here
        kept = [float((out.read(n) != view.tensor("base", n)).float().mean()) for n in view.tensors]
        assert all(0.4 < share < 0.95 for share in kept)
    else:
        assert out.content == expected.content


def test_a_block_of_another_base_block_and_unequal_ranges(llama: Sources, uniform: Any) -> None:
    view = restack(llama, ({"base": 0}, {"a": 1}))
    bad = replace(uniform(view, Assignment.of("linear", {"a": {"coefficient": 1.0}})), layers=view.layers)
    with pytest.raises(MergingError, match="block 0 no block of that model"):
        export(bad, llama, Path("nowhere"))


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ((), "at least one block"),
        (({},), "block 0 of the layers is made from no model"),
        (({"c": 0},), "block 0 of the layers names the model 'c'; there are base, a, b"),
        (({"a": 0}, {"a": 3}), "block 1 of the layers is made from block 3 of 'a', which has 3: 0 to 2"),
    ],
)
def test_layers_that_do_not_exist(layers: Any, message: str, llama: Sources) -> None:
    with pytest.raises(MergingError) as caught:
        restack(llama, layers)
    assert message in str(caught.value)


def test_a_recipes_aliases_are_translated(llama: Sources, uniform: Any, tmp_path: Path) -> None:
    layers = ({"base": 0, "a": 1}, {"base": 1, "a": 0})
    ours = replace(uniform(restack(llama, layers), Assignment.of("ties", {"a": {"coefficient": 1.0}})), layers=layers)
    text = yaml.safe_load(ours.to_yaml())
    text["sources"]["x"] = text["sources"].pop("a")
    for entry in text["groups"]:
        entry["sources"]["x"] = entry["sources"].pop("a")
    for entry in text["layers"]:
        entry["x"] = entry.pop("a")
    theirs = Recipe.from_yaml(yaml.safe_dump(text))
    assert theirs.hash == ours.hash
    assert for_recipe(llama, theirs).layers == layers  # type: ignore[attr-defined]
    one, other = (export(each, llama, tmp_path / name) for each, name in ((ours, "ours"), (theirs, "theirs")))
    assert Checkpoint.open(one).content == Checkpoint.open(other).content


def test_integer_buffers_of_blocks_move_with_them(families: Callable[..., Any], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folders = {}
    for name in ("base", "a"):
        source = getattr(families("gpt2"), name)
        folders[name] = tmp_path / name
        folders[name].mkdir()
        (folders[name] / "config.json").write_bytes((source / "config.json").read_bytes())
        weights = load_file(source / "model.safetensors")
        weights |= {f"transformer.h.{i}.attn.marker": torch.tensor([i, 10 * (name == "a")]) for i in range(3)}
        save_file(weights, folders[name] / "model.safetensors")
    sources = Sources.load(folders["base"], {"a": folders["a"]})
    assert len(sources.frozen) == 3
    layers = ({"a": 2}, {"base": 1, "a": 0})
    view = restack(sources, layers)
    assert sorted(view.frozen) == ["transformer.h.0.attn.marker", "transformer.h.1.attn.marker"]
    copied = dict.fromkeys(view.layout.groups, Assignment.of("passthrough", {"a": {}}))
    recipe = Recipe("base", sources.refs, copied, layers=layers)
    out = Checkpoint.open(export(recipe, sources, tmp_path / "out"))
    # What is never merged is the base's, where the base takes part in the block.
    assert out.read("transformer.h.0.attn.marker").tolist() == [2, 10]
    assert out.read("transformer.h.1.attn.marker").tolist() == [1, 0]


def test_a_mixture_of_dtypes_keeps_the_base_blocks(families: Callable[..., Any], tmp_path: Path) -> None:
    family, wide = families("llama", torch.bfloat16), families("llama")
    sources = Sources.load(family.base, {"a": wide.a})
    view = restack(sources, ({"base": 0}, {"a": 1}))
    assert view.tensors[UP.format(0)].dtype == torch.bfloat16 and view.tensors[UP.format(1)].dtype == torch.float32


def test_two_stacks_have_no_one_order_of_blocks(tmp_path: Path) -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    config = T5Config(vocab_size=40, d_model=16, d_kv=4, d_ff=32, num_layers=2, num_heads=4)
    T5ForConditionalGeneration(config).save_pretrained(tmp_path / "t5")
    sources = Sources.load(tmp_path / "t5", {})
    with pytest.raises(MergingError, match=r"one stack of blocks; .* has 'decoder', 'encoder'"):
        restack(sources, ({"base": 0},))
    with pytest.raises(MergingError, match="slices need models with one stack of blocks"):
        run(tmp_path, passthrough((tmp_path / "t5", 0, 1), (tmp_path / "t5", 1, 2)))


CONFIG = {
    "num_hidden_layers": 3,
    "hidden_size": 3,
    "layer_types": ["full", "sliding", "full"],
    "no_rope_layers": [1, 0, 1],
    "mlp_only_layers": [1],
    "eos_token_id": [5, 6, 7],
    "architectures": ["X"],
    "max_window_layers": 3,
}


def test_lists_of_a_config_follow_the_blocks() -> None:
    found = restacked_config(CONFIG, 3, [1, 1, 2, 0])
    assert found == CONFIG | {
        "num_hidden_layers": 4,
        "layer_types": ["sliding", "sliding", "full", "full"],
        "no_rope_layers": [0, 0, 1, 1],
        "mlp_only_layers": [0, 1],
    }
    assert CONFIG["num_hidden_layers"] == 3


def test_configs_of_parts_follow_and_other_parts_do_not() -> None:
    vision = {"num_hidden_layers": 7, "layer_types": ["x"] * 7}
    found = restacked_config({"text_config": CONFIG, "vision_config": vision}, 3, [0, 2])
    assert found["vision_config"] == vision
    assert found["text_config"]["num_hidden_layers"] == 2 and found["text_config"]["layer_types"] == ["full", "full"]
    assert restacked_config({"n_layer": 2, "depths": [1, 2]}, 2, [1]) == {"n_layer": 1, "depths": [2]}
    assert restacked_config({"model_type": "x"}, 2, [0, 0, 1])["num_hidden_layers"] == 3


def test_kinds_of_blocks_that_a_class_derives_from_their_number_are_written_out(tmp_path: Path) -> None:
    """Gemma 2 alternates: after a restack, the number of a block no longer says of which kind it is."""
    from transformers import Gemma2Config

    torch.manual_seed(0)
    size = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 32, "head_dim": 8}
    config = Gemma2Config(**size, num_hidden_layers=4, num_attention_heads=2, num_key_value_heads=1, sliding_window=4)
    kinds = list(config.layer_types)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "gemma")
    stored = json.loads((tmp_path / "gemma" / "config.json").read_text())
    stored.pop("layer_types", None)
    (tmp_path / "gemma" / "config.json").write_text(json.dumps(stored))
    out = run(tmp_path, passthrough((tmp_path / "gemma", 1, 4), (tmp_path / "gemma", 0, 2)))
    assert len(set(kinds)) == 2
    reloaded = AutoModelForCausalLM.from_pretrained(out)
    assert list(reloaded.config.layer_types) == [kinds[i] for i in (1, 2, 3, 0, 1)]


def test_the_golden_stack_needs_no_base(tmp_path: Path) -> None:
    recipe, sources = read_config(GOLDEN / "passthrough_stack" / "config.yml")
    assert recipe.layers == ({"base": 0}, {"base": 1}, {"base": 2}, {"ft2": 1}, {"ft2": 2}, {"ft2": 3})
    assert recipe.groups[Group("embedding")].sources[0][0] == "base" and sources.path.name == "ft1"
    assert recipe.groups[Group("head")].sources[0][0] == recipe.groups[Group("norm")].sources[0][0] == "ft2"
